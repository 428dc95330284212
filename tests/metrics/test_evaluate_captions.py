"""Predictions and references in all their formats, and the report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from excitor_mm.errors import DataError
from excitor_mm.evaluate.captions import evaluate_captions, format_scores
from excitor_mm.references import read_predictions, read_references, references_hash
from tests.conftest import COLOURS, make_shards

TRUTH = {i: [f"A {COLOURS[i]} square.", f"A picture of a square in {COLOURS[i]}."] for i in range(6)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same six images as shards, COCO, gzipped COCO and Karpathy's format."""
    make_shards(tmp_path / "shards", [4, 2])
    rows = [{"image_id": i, "caption": f" {c}\n"} for i, texts in TRUTH.items() for c in texts]
    coco = json.dumps({"images": [{"id": i} for i in TRUTH], "annotations": rows})
    (tmp_path / "coco.json").write_text(coco)
    (tmp_path / "coco.json.gz").write_bytes(gzip.compress(coco.encode()))
    images = [
        {"cocoid": i, "split": "test" if i < 4 else "restval", "sentences": [{"raw": c} for c in texts]}
        for i, texts in TRUTH.items()
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    lines = [{"image_id": i, "caption": TRUTH[i][0]} for i in TRUTH]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "predictions.meta.json").write_text('{"adapter": "x", "decoding": {"beams": 3}, "prompt": "p"}')
    (tmp_path / "results.json").write_text(json.dumps(lines))
    return tmp_path


def test_every_format_holds_the_same_references(files: Path) -> None:
    formats = [read_references(str(files / name)) for name in ("shards", "coco.json", "coco.json.gz")]
    assert all(found == TRUTH for found in formats)
    assert len({references_hash(found) for found in formats}) == 1
    assert read_references(str(files / "dataset_coco.json"), "test") == {i: TRUTH[i] for i in range(4)}
    assert read_references(str(files / "dataset_coco.json"), "train") == {i: TRUTH[i] for i in (4, 5)}
    assert read_predictions(files / "results.json") == read_predictions(files / "predictions.jsonl")


def test_ids_choose_the_images(files: Path) -> None:
    (files / "ids.json").write_text('{"test": [1, 2]}')
    (files / "ids.txt").write_text("val2014/x.jpg 3\nval2014/y.jpg 4\n")
    assert read_references(str(files / "coco.json"), "test", files / "ids.json").keys() == {1, 2}
    assert read_references(str(files / "coco.json"), None, files / "ids.txt").keys() == {3, 4}


def test_report_says_what_was_scored(files: Path) -> None:
    output = files / "out" / "report.json"
    report = evaluate_captions(
        files / "predictions.jsonl", str(files / "shards"), output=output, metrics=["CIDEr"], shuffled_control=True
    )
    assert json.loads(output.read_text()) == report
    assert report["references_hash"] == references_hash(TRUTH)
    assert (report["count"], report["subset_of"], report["decoding"], report["prompt"]) == (
        6,
        None,
        {"beams": 3},
        "p",
    )
    assert report["shuffled_control"]["CIDEr"] < report["scores"]["CIDEr"]
    rows = [json.loads(line) for line in (output.parent / "per_image.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == list(read_references(str(files / "shards")))
    assert "SUBSET" not in format_scores(report)


def test_a_part_is_scored_only_when_asked_and_labelled(files: Path) -> None:
    few = files / "few.json"
    few.write_text(json.dumps([{"image_id": i, "caption": "a"} for i in range(3)]))
    with pytest.raises(DataError, match="lack 3 of 6 images"):
        evaluate_captions(few, str(files / "coco.json"), metrics=["CIDEr"])
    report = evaluate_captions(few, str(files / "coco.json"), metrics=["CIDEr"], subset=True)
    assert (report["count"], report["subset_of"]) == (3, 6)
    assert "SUBSET of 6" in format_scores(report)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "no image_id"),
        ("", "is empty"),
        ("[]", "holds no row"),
        ('[{"caption": "a"}]', "no image_id"),
        ('[{"image_id": 1, "caption": ["a"]}]', "not a text"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "twice"),
        ("[", "neither a JSON array"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap', "may be cut off"),
    ],
)
def test_bad_predictions_are_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_predictions(tmp_path / "p.json")
