"""Evaluation from the command line: the whole chain, and a sentence for every bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from excitor_mm.cli import main
from excitor_mm.config import RunConfig
from excitor_mm.train import train
from tests.conftest import interruptible, make_shards

TRUTH = [
    (1, "A dog runs on grass."),
    (1, "The dog runs."),
    (2, "A red bus."),
    (2, "A bus on a road."),
    (3, "Two cats."),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"image_id": i, "caption": text} for i, text in TRUTH]
    (tmp_path / "truth.json").write_text(json.dumps({"images": [], "annotations": rows}))
    return tmp_path


def guesses(**changes: str) -> list[dict]:
    texts = {"1": "A dog.", "2": "A bus.", "3": "A cat.", **changes}
    return [{"image_id": int(i), "caption": text} for i, text in texts.items()]


def evaluate(folder: Path, content: bytes | str, capsys, *options: str) -> tuple[int, str, str]:
    path = folder / "p.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["evaluate", "captions", "--predictions", str(path), "--references", str(folder / "truth.json")]
    status = main([*command, "--metrics", "CIDEr", "ROUGE-L", *options])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def test_clean_files_end_with_zero(folder: Path, capsys) -> None:
    for content in (json.dumps(guesses()), "\n".join(map(json.dumps, guesses()))):
        for start in ("", "\ufeff"):
            status, out, _ = evaluate(folder, start + content, capsys)
            assert status == 0
            assert "CIDEr" in out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("[]", "holds no row"),
        (json.dumps(guesses())[:-9], "may be cut off"),
        (json.dumps(guesses() + guesses()[:1]), "twice"),
        (
            json.dumps([{**row, "image_id": str(row["image_id"])} for row in guesses()]),
            "ids of the predicted images are str",
        ),
        (json.dumps(guesses()[:2]), "lack 1 of 3 images"),
        (json.dumps([{"image_id": True, "caption": "x"}]), "no image_id"),
        (json.dumps([{"image_id": 1, "caption": 5}]), "not a text"),
        (b"\xff\xfe[", "not UTF-8"),
        ("[" * 100_000, "neither a JSON array"),
    ],
)
def test_unusable_predictions_end_with_two(folder: Path, capsys, content: bytes | str, sentence: str) -> None:
    status, out, error = evaluate(folder, content, capsys)
    assert (status, out) == (2, "")
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("", "1 captions are empty"),
        ("dog " * 10_000, "more than 100 words"),
        ("a \x07 dog", "control characters"),
        ("a\u2028dog\u2029b\x85c\vd\fe\rf", "line breaks"),
    ],
)
def test_odd_captions_are_scored_with_a_remark(folder: Path, capsys, caption: str, sentence: str) -> None:
    status, out, _ = evaluate(folder, json.dumps(guesses(**{"1": caption})), capsys)
    assert status == 1
    assert sentence in out
    assert "CIDEr" in out


def test_emoji_are_just_characters(folder: Path, capsys) -> None:
    status, out, _ = evaluate(folder, json.dumps(guesses(**{"1": "A dog \U0001f415."})), capsys)
    assert status == 0


def test_one_image_and_missing_references(folder: Path, capsys) -> None:
    status, out, _ = evaluate(folder, json.dumps(guesses()[:1]), capsys, "--subset")
    assert status == 1
    assert "at least 2 images" in out
    (folder / "truth.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": 7}]}))
    status, _, error = evaluate(folder, json.dumps(guesses()), capsys)
    assert (status, "neither COCO captions" in error) == (2, True)


def test_pictures_that_do_not_fit_are_found_before_scoring(folder: Path, capsys) -> None:
    """The shards hold the pictures 0 and 1, the predictions speak of 1, 2 and 3."""
    shards = make_shards(folder / "shards", [2])
    report = ["--output", str(folder / "report.json")]
    for options, sentence in (
        (["--pictures", str(shards), *report], "lacks the pictures of 2 of 3 images"),
        (["--pictures", str(folder / "none"), *report], "does not exist"),
        (["--pictures", str(shards)], "without --output"),
    ):
        status, out, error = evaluate(folder, json.dumps(guesses()), capsys, *options)
        assert (status, out) == (2, "")
        assert sentence in error
        assert not (folder / "report.json").exists()


def test_a_report_that_cannot_be_written(folder: Path, capsys) -> None:
    report = folder / "report.json"
    status, _, _ = evaluate(folder, json.dumps(guesses()), capsys, "--output", str(report))
    before = report.read_text()
    for place in ("/dev/full/report.json", str(folder / "p.json" / "report.json")):
        status, _, error = evaluate(folder, json.dumps(guesses()), capsys, "--output", place)
        assert status == 2
        assert "cannot be written" in error
    assert report.read_text() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_the_old_report(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    report = folder / "report.json"
    evaluate(folder, json.dumps(guesses()), capsys, "--output", str(report))
    before = report.read_text()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, error = evaluate(folder, json.dumps(guesses()), capsys, "--output", str(report))
    assert (status, "No space left on device" in error) == (2, True)
    assert report.read_text() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_interrupted_in_meteor_leaves_no_java(folder: Path) -> None:
    rows = [{"image_id": i, "caption": "a dog runs " * 30} for i in range(20_000)]
    (folder / "truth.json").write_text(json.dumps({"annotations": rows}))
    (folder / "p.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "excitor_mm", "evaluate", "captions", "--predictions", str(folder / "p.json")]
    command += ["--references", str(folder / "truth.json"), "--output", str(folder / "out" / "report.json")]
    process = subprocess.Popen(command, preexec_fn=interruptible, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (children := java_children(process.pid)) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert all(not Path(f"/proc/{child}").exists() for child in children)
    assert not (folder / "out").exists()


def java_children(parent: int) -> list[int]:
    """METEOR processes below a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            status = (path.parent / "status").read_text()
            if b"meteor" in path.read_bytes() and f"\nPPid:\t{parent}\n" in status:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_benchmark_from_shards_to_submission(
    run_config: RunConfig, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, shards = train(run_config), run_config.data.train
    images = tmp_path / "images.json"
    images.write_text(json.dumps({"images": [{"id": i} for i in range(8)]}))
    command = ["benchmark", "--adapter", str(adapter), "--shards", shards, "--output", str(tmp_path / "out")]
    command += ["--workers", "0", "--shuffled-control"]
    assert main([*command, "--algorithm", "ours"]) == 2
    assert "--test-shards" in capsys.readouterr().err
    lists = ["--test-shards", shards, "--val-images", str(images), "--test-images", str(images)]
    with monkeypatch.context() as patch:
        patch.setattr("excitor_mm.metrics.java._candidate", lambda: None)
        assert main(command) == 2
    assert "No Java" in capsys.readouterr().err
    for late, sentence in (
        (["--algorithm", "a/b", *lists], "expected letters"),
        (["--algorithm", "ours", *lists[:-1], str(adapter / "excitor_config.json")], "official file"),
        (["--references", str(tmp_path / "none.json")], "does not exist"),
    ):
        assert main([*command, *late]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # all of this is found before hours of captioning
    assert main([*command, "--algorithm", "ours", *lists]) in (
        0,
        1,
    )  # 1: remarks about this untrained model's captions
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"predictions.jsonl", "report.json", "per_image.jsonl", "report.html", "ours_results.zip"} <= names
    assert main(["submit", "coco", *lists[2:], "--validate", str(tmp_path / "out" / "ours_results.zip")]) == 0
    assert main(["compare", str(tmp_path / "out")]) == 0
    assert "CIDEr" in capsys.readouterr().out


def test_clip_score_by_its_definition(run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny CLIP with random weights: scores equal the paper's formula, computed here from its features."""
    import open_clip
    import torch

    from excitor_mm.data.images import load_image
    from excitor_mm.data.shards import list_shards, read_shard
    from excitor_mm.errors import ConfigError
    from excitor_mm.evaluate.captions import evaluate_captions

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "tiny-clip.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "tiny.pt")
    shards = run_config.data.train
    samples = [s for shard in list_shards(shards) for s in read_shard(shard, lambda _: None)]
    rows = [{"image_id": s.image_id, "caption": s.captions[0] if s.image_id else "no"} for s in samples]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    spec = f"tiny-clip:{tmp_path / 'tiny.pt'}"
    options = {"metrics": ["ROUGE-L"], "clip_model": spec, "output": tmp_path / "out" / "report.json"}
    report = evaluate_captions(tmp_path / "p.json", shards, pictures=shards, **options)
    found = [json.loads(line) for line in (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()]
    net, _, prepare = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(tmp_path / "tiny.pt"))
    net.eval()
    tokenize = open_clip.get_tokenizer("tiny-clip")
    with torch.no_grad():
        for row, sample in zip(found, samples, strict=True):
            picture = net.encode_image(prepare(load_image(sample.image))[None])[0]
            words = net.encode_text(tokenize([f"A photo depicts {t}" for t in (row["caption"], *sample.captions)]))
            cosine = torch.cosine_similarity(picture[None], words[:1])[0].clamp(min=0)
            nearest = torch.cosine_similarity(words[:1], words[1:]).max().clamp(min=0)
            score = 2.5 * cosine
            assert row["CLIPScore"] == pytest.approx(100 * score.item(), abs=1e-2)
            harmonic = 2 * score * nearest / (score + nearest)
            assert row["RefCLIPScore"] == pytest.approx(100 * harmonic.nan_to_num().item(), abs=1e-2)
    assert report["clip_model"] == spec
    assert report["intervals"]["CLIPScore"][0] <= report["scores"]["CLIPScore"] <= report["intervals"]["CLIPScore"][1]
    with pytest.raises(ConfigError, match="--pictures"):
        evaluate_captions(tmp_path / "p.json", shards, **options)
    with pytest.raises(ConfigError, match="cannot load"):
        evaluate_captions(tmp_path / "p.json", shards, pictures=shards, **{**options, "clip_model": "no-model:x"})
