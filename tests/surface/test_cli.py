"""The command line on tiny parts: the whole way, and a sentence for every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from excitor_mm.cli import main
from excitor_mm.commands import COMMANDS, make_parser
from excitor_mm.config import RunConfig


@pytest.fixture
def config_file(run_config: RunConfig, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(run_config)))))
    return path


@pytest.fixture
def adapter(config_file: Path, tmp_path: Path) -> Path:
    assert main(["train", "--config", str(config_file)]) == 0
    return tmp_path / "run" / "best"


def test_train_predict_evaluate_inspect(adapter: Path, run_config: RunConfig, tmp_path: Path, capsys) -> None:
    shards, predictions = run_config.data.train, tmp_path / "p.jsonl"
    assert main(["inspect", str(adapter)]) == 0
    assert "gates by layer" in capsys.readouterr().out
    command = [
        "predict",
        "--adapter",
        str(adapter),
        "--shards",
        shards,
        "--output",
        str(predictions),
        "--workers",
        "0",
    ]
    assert main([*command, "--batch-size", "3"]) == 0
    whole = predictions.read_text()
    assert len(whole.splitlines()) == 8
    predictions.write_text("".join(line + "\n" for line in whole.splitlines()[:3]) + '{"image_id": 4, "ca')
    assert main([*command, "--batch-size", "3"]) == 0
    assert sorted(predictions.read_text().splitlines()) == sorted(whole.splitlines())
    assert main([*command, "--beams", "2"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    report = tmp_path / "report.json"
    scoring = ["evaluate", "captions", "--predictions", str(predictions), "--references", shards]
    status = main([*scoring, "--output", str(report), "--shuffled-control", "--pictures", shards])
    # This model has learnt next to nothing: where it writes control characters, the evaluation remarks on it.
    assert status == (1 if json.loads(report.read_text())["remarks"] else 0)
    assert "<img" in report.with_name("report.html").read_text()
    assert json.loads(report.read_text())["count"] == 8
    assert json.loads(report.read_text())["adapter"] == "best"


def test_batches_give_the_text_of_single_calls(adapter: Path, photos: Path, capsys) -> None:
    texts = []
    for size in ("1", "2", "5"):
        assert main(["caption", str(photos), "--adapter", str(adapter), "--batch-size", size, "--json"]) == 0
        texts.append([json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()])
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 5


def test_caption_takes_files_folders_globs_and_stdin(adapter: Path, photos: Path, capsys, monkeypatch) -> None:
    one, options = str(photos / "deep" / "0.jpg"), ["--adapter", str(adapter)]
    assert main(["caption", one, *options]) == 0
    alone = capsys.readouterr().out
    assert len(alone.splitlines()) == 1
    assert "\t" not in alone
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one}\n{one}\n"))
    assert main(["caption", "-", f"{photos}/**/[12].jpg", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # what is named twice is captioned once
    assert lines[0] == f"{one}\t{alone.strip()}"


def test_one_bad_picture_does_not_stop_the_others(adapter: Path, photos: Path, capsys) -> None:
    (photos / "deep" / "2.jpg").write_bytes(b"text")
    assert main(["caption", str(photos), "--adapter", str(adapter)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert "2.jpg is not an image" in captured.err


def test_dry_run_trains_nothing(config_file: Path, tmp_path: Path, capsys) -> None:
    assert main(["train", "--config", str(config_file), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "trainables" in output
    assert "steps per epoch  1.0" in output
    assert not (tmp_path / "run").exists()


def test_dotted_overrides_and_the_saved_configuration(config_file: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(config_file), "--train.steps", "2", "--excitor.gate_start", "0.25"]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["train"]["steps"], saved["excitor"]["gate_start"]) == (2, 0.25)


def status_and_error(arguments: list[str], capsys) -> tuple[int, str]:
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.err


def test_mistakes_are_answered_with_a_sentence(config_file: Path, adapter: Path, tmp_path: Path, capsys) -> None:
    train = ["train", "--config", str(config_file)]
    other = tmp_path / "other.yaml"
    other.write_text(config_file.read_text().replace("\n  learning_rate:", "\n  learning_rat:", 1))
    (tmp_path / "tag.yaml").write_text("train: !!python/object/apply:os.system ['true']\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "captions.json").write_text('{"images": [{"id": 1, "file_name": "x.jpg"}]}')
    pack = ["pack-coco", "--images", str(empty), "--captions", str(tmp_path / "captions.json")]
    cases = [
        (["train", "--config", str(other)], "train.learning_rate"),
        (["train", "--config", str(tmp_path / "tag.yaml")], "excitor-mm:"),
        ([*train, "--train.stepz", "3"], "train.steps"),
        ([*train, "--train.steps", "many"], "int"),
        ([*train], "--resume or --overwrite"),
        ([*train, "--overwrite", "--train.accumulation", "3"], "does not divide"),
        ([*train, "--data.train", str(tmp_path / "none"), "--overwrite"], "does not exist"),
        ([*train, "--language.path", str(empty), "--overwrite"], "cannot be loaded"),
        ([*train, "--train.device", "cuda", "--overwrite"], "no GPU"),
        (["caption", str(tmp_path / "none.jpg"), "--adapter", str(adapter)], "cannot be read"),
        (["caption", str(empty), "--adapter", str(adapter)], "No picture"),
        (["caption", "x.jpg", "--adapter", str(empty)], "holds no excitor_config.json"),
        (["inspect", str(empty)], "holds no excitor_config.json"),
        (["shards", "check", str(empty)], "no .tar"),
        (["shards", "check", str(empty), "--batch-size", "0"], "PositiveInt"),
        (["caption", "x.jpg", "--adapter", str(adapter), "--beams", "0"], "PositiveInt"),
        (["caption", "x.jpg", "--adapter", str(adapter), "--beems", "2"], "Did you mean beams?"),
        (["caption", "x.jpg", "--adapter", str(adapter), "--min-new-tokens", "99"], "more than max_new_tokens"),
        ([*train, "--data.crop_scale", "[0.9, 0.1]", "--overwrite"], "data.crop_scale"),
        ([*pack, "--output", str(config_file / "out")], f"{config_file / 'out'} cannot be used (Not a directory)"),
        ([*pack, "--output", str(tmp_path / "packed"), "--name", "a/b"], "--name"),
        (["evaluate", "captions", "--predictions", "none.jsonl", "--references", str(empty)], "does not exist"),
    ]
    for arguments, sentence in cases:
        status, error = status_and_error(arguments, capsys)
        assert status == 2, arguments
        assert sentence in error, (arguments, error)
    assert adapter.is_dir()  # a refused --overwrite deletes nothing


def test_check_exits_with_one_for_broken_shards(run_config: RunConfig, capsys) -> None:
    assert main(["shards", "check", run_config.data.train]) == 0
    shard = next(Path(run_config.data.train).glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:3000])
    assert main(["shards", "check", run_config.data.train, "--json"]) == 1
    assert "truncated or corrupt tar" in capsys.readouterr().out


def test_a_parser_for_some_words_takes_what_the_whole_one_takes() -> None:
    """`main` makes the options of the commands that its arguments may name, and of no other."""
    whole = make_parser()
    for name in ("", *COMMANDS):
        words = [*name.split(), "--help"]
        assert _help(make_parser(words), words) == _help(whole, words)


def _help(parser: ArgumentParser, words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        parser.parse_args(words)
    return said.getvalue()
