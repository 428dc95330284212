"""Reports side by side: only what was measured on the same set, and claims marked as claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from excitor_mm.errors import DataError
from excitor_mm.evaluate.captions import compare_scores, evaluate_captions
from excitor_mm.evaluate.compare import FORMATS, compare_reports
from excitor_mm.evaluate.published import CLAIMS, KARPATHY_TEST, SCIENCEQA_TEST
from excitor_mm.metrics.captions import score_captions
from excitor_mm.references import ids_hash
from tests.metrics.test_captions import PREDICTIONS, REFERENCES, sentences


def files(folder: Path, name: str, predictions: dict, references: dict) -> Path:
    (folder / name).mkdir()
    rows = [{"image_id": i, "caption": text} for i, texts in references.items() for text in texts]
    (folder / name / "truth.json").write_text(json.dumps({"images": [], "annotations": rows}))
    guesses = [{"image_id": i, "caption": text} for i, text in predictions.items()]
    (folder / name / "p.json").write_text(json.dumps(guesses))
    evaluate_captions(
        folder / name / "p.json",
        str(folder / name / "truth.json"),
        output=folder / name / "report.json",
        metrics=["CIDEr", "ROUGE-L"],
    )
    return folder / name


def test_same_set_makes_a_table(tmp_path: Path) -> None:
    paths = [files(tmp_path, name, PREDICTIONS, REFERENCES) for name in ("a", "b")]
    scores = json.loads((paths[0] / "report.json").read_text())["scores"]
    for style in FORMATS:
        table = compare_reports(paths, style=style)
        assert table.count(f"{scores['CIDEr']:.1f} [") == 2
        assert "measured" in table
    assert compare_reports(paths, style="markdown").splitlines()[2].startswith("| model | CIDEr | ROUGE-L |")
    with pytest.raises(DataError, match="No published scores are known"):
        compare_reports(paths, published=True)


def test_other_images_references_splits_and_subsets_are_refused(tmp_path: Path) -> None:
    first = files(tmp_path, "a", PREDICTIONS, REFERENCES)
    fewer = {i: REFERENCES[i] for i in range(29)}
    other = files(tmp_path, "b", {i: PREDICTIONS[i] for i in fewer}, fewer)
    with pytest.raises(DataError, match="differ in their references"):
        compare_reports([first, other])
    reworded = files(tmp_path, "c", PREDICTIONS, {i: [*texts[1:], "new words"] for i, texts in REFERENCES.items()})
    with pytest.raises(DataError, match="differ in their references"):
        compare_reports([first, reworded])
    for key, value in (("split", "test"), ("subset_of", 99), ("task", "vqa")):
        report = json.loads((first / "report.json").read_text()) | {key: value}
        (tmp_path / "x.json").write_text(json.dumps(report))
        with pytest.raises(DataError, match="cannot stand in one column"):
            compare_reports([first, tmp_path / "x.json"])
    (tmp_path / "x.json").write_text('{"scores": {}, "format_version": 1}')
    with pytest.raises(DataError, match="format version 1"):
        compare_reports([tmp_path / "x.json"])


def test_claims_are_marked_and_only_about_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files(tmp_path, "a", PREDICTIONS, REFERENCES)
    monkeypatch.setitem(CLAIMS, ("captions", ids_hash(REFERENCES)), CLAIMS["captions", KARPATHY_TEST])
    lines = compare_reports([path], published=True, style="markdown").splitlines()
    assert len([line for line in lines if "CLAIM: " in line]) == 9
    (excitor,) = [line for line in lines if "LLaMA-Excitor" in line]
    assert "157.5" in excitor
    assert "nothing public reproduces it" in excitor


def test_the_known_sets_are_the_official_ones(shared: Path) -> None:
    lines = (shared / "refs" / "karpathy_test_images.txt").read_text().splitlines()
    assert ids_hash(int(line.split()[-1]) for line in lines if line) == KARPATHY_TEST
    assert ids_hash(json.loads((shared / "scienceqa" / "pid_splits.json").read_text())["test"]) == SCIENCEQA_TEST


def test_paired_comparison_is_sharper_than_two_intervals() -> None:
    """One caption in three made worse: the pairs show it clearly, although the two intervals overlap."""
    worse = {i: sentences(500 + i, 1)[0] if i % 3 == 1 else text for i, text in PREDICTIONS.items()}
    ours, other = (score_captions(texts, REFERENCES, ["CIDEr"]) for texts in (PREDICTIONS, worse))
    row = compare_scores(ours, other)["CIDEr"]
    assert row["difference"] == pytest.approx(ours.scores["CIDEr"] - other.scores["CIDEr"])
    assert row["interval"][0] > 0
    assert ours.intervals()["CIDEr"][0] < other.intervals()["CIDEr"][1]
    assert row["wins"] + row["losses"] + row["ties"] == 30
    assert row["ties"] == 20
    reverse = compare_scores(other, ours)["CIDEr"]
    assert reverse["interval"] == pytest.approx([-value for value in reversed(row["interval"])])
    assert (reverse["wins"], reverse["losses"]) == (row["losses"], row["wins"])
    same = compare_scores(ours, ours)["CIDEr"]
    assert (same["difference"], same["interval"], same["ties"]) == (0, [0, 0], 30)
