"""Submission files: what we write is accepted, and every reason to reject one has its sentence."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excitor_mm.cli import main
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.submit import check_coco, check_vizwiz, check_vqa, write_coco, write_vizwiz, write_vqa

Rows = list[dict[str, Any]]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Image lists and question files of three items each."""
    for name in ("captions_val2014", "image_info_test2014"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": [{"id": i} for i in (1, 2, 3)]}))
    questions = [{"question_id": i, "question": "?", "image_id": 1} for i in (10, 11, 12)]
    (tmp_path / "questions.json").write_text(json.dumps({"data_subtype": "test2015", "questions": questions}))
    (tmp_path / "vizwiz.json").write_text(json.dumps([{"image": f"{i}.jpg", "question": "?"} for i in (1, 2, 3)]))
    captions = [{"image_id": i, "caption": f"A d\u00f6g {i}."} for i in (1, 2, 3)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    answers = [{"question_id": i, "answer": "The Red, one."} for i in (10, 11, 12)]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    return tmp_path


def coco_lists(official: Path) -> tuple[Path, Path]:
    return official / "captions_val2014.json", official / "image_info_test2014.json"


def test_coco_zip_is_accepted_and_flat(official: Path) -> None:
    path = write_coco(
        official / "captions.jsonl", official / "captions.jsonl", *coco_lists(official), "ours", official / "out"
    )
    assert check_coco(path, *coco_lists(official)) == []
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [
            "captions_test2014_ours_results.json",
            "captions_val2014_ours_results.json",
        ]
        rows = json.loads(archive.read("captions_val2014_ours_results.json"))
    assert rows[0] == {"image_id": 1, "caption": "A d\u00f6g 1."}


def drop(rows: Rows) -> Any:
    return rows[1:]


FLAWS: list[tuple[Callable[[Rows], Any], str]] = [
    (drop, "1 image_ids are missing, such as '1'"),
    (lambda rows: [*rows, {"image_id": 9, "caption": "x"}], "1 image_ids are not in the official file, such as '9'"),
    (lambda rows: [*rows, rows[0]], "1 image_ids are there more than once"),
    (lambda rows: [{**row, "image_id": str(row["image_id"])} for row in rows], "3 image_ids are not of the type int"),
    (lambda rows: [{**row, "caption": ["x"]} for row in rows], "3 captions are not texts"),
    (lambda rows: [{**row, "score": 1} for row in rows], "3 entries are not objects of image_id and caption alone"),
    (lambda rows: [*rows, "x"], "1 entries are not objects"),
    (lambda rows: {"rows": rows}, "a JSON dict, expected a list"),
    (lambda rows: b"\xff" + json.dumps(rows).encode(), "not UTF-8"),
    (lambda rows: json.dumps(rows).encode()[:-3], "not JSON"),
]


@pytest.mark.parametrize(("spoil", "sentence"), FLAWS)
def test_flaws_of_the_rows(official: Path, spoil: Callable[[Rows], Any], sentence: str) -> None:
    rows = [{"image_id": i, "caption": "x"} for i in (1, 2, 3)]
    spoilt = spoil(rows)
    content = spoilt if isinstance(spoilt, bytes) else json.dumps(spoilt)
    path = official / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("captions_val2014_a_results.json", json.dumps(rows))
        archive.writestr("captions_test2014_a_results.json", content)
    problems = check_coco(path, *coco_lists(official))
    assert all(problem.startswith("test2014: ") for problem in problems)
    assert any(sentence in problem for problem in problems)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["r/captions_val2014_a_results.json", "r/captions_test2014_a_results.json"], "folder"),
        (["captions_val2014__results.json", "captions_test2014__results.json"], "empty"),
        (["captions_val2014_a_results.json"], "0 files for test2014"),
        (["captions_val2014_a_results.json", "captions_val2014_b_results.json"], "2 files for val2014"),
        (["captions_val2014_a_results.json", "captions_test2014_b_results.json"], "different methods: 'a', 'b'"),
        (
            ["captions_val2014_a_results.json", "captions_test2014_a_results.json", "note.txt"],
            "'note.txt', expected only",
        ),
        (["captions_val2017_a_results.json", "captions_test2014_a_results.json"], "captions_val2017_a"),
    ],
)
def test_flaws_of_the_names(official: Path, names: list[str], sentence: str) -> None:
    path = official / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, json.dumps([{"image_id": i, "caption": "x"} for i in (1, 2, 3)]))
    assert any(sentence in problem for problem in check_coco(path, *coco_lists(official)))


def test_not_a_zip_and_no_file(official: Path) -> None:
    (official / "x.zip").write_bytes(b"PK no zip")
    assert "not a readable zip" in check_coco(official / "x.zip", *coco_lists(official))[0]
    with zipfile.ZipFile(official / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("captions_val2014_a_results.json", "abcdefgh" * 100)
    data = bytearray((official / "x.zip").read_bytes())
    data[62:70] = b"\xff" * 8  # inside the packed rows
    (official / "x.zip").write_bytes(data)
    assert "not a readable zip" in check_coco(official / "x.zip", *coco_lists(official))[0]
    with pytest.raises(DataError, match="cannot be read"):
        check_coco(official / "none.zip", *coco_lists(official))
    with pytest.raises(DataError, match="official file"):
        check_vqa(official / "answers.json", official / "captions_val2014.json")


def test_nothing_is_written_that_would_be_rejected(official: Path) -> None:
    (official / "short.json").write_text('[{"image_id": 1, "caption": "x"}]')
    with pytest.raises(DataError, match=r"Nothing was written.*2 image_ids are missing"):
        write_coco(official / "short.json", official / "captions.jsonl", *coco_lists(official), "a", official / "out")
    lists = coco_lists(official)
    path = write_coco(
        official / "short.json", official / "captions.jsonl", *lists, "a", official / "filled", fill_missing=True
    )
    assert check_coco(path, *lists) == []
    with pytest.raises(ConfigError, match=r"--algorithm.*expected letters"):
        write_vqa(official / "answers.json", official / "questions.json", "", official / "out")
    assert not (official / "out").exists()


def test_vqa_answers_are_normalised_and_complete(official: Path) -> None:
    path = write_vqa(official / "answers.json", official / "questions.json", "ours", official / "out")
    assert path.name == "v2_OpenEnded_mscoco_test2015_ours_results.json"
    assert json.loads(path.read_text())[0] == {"question_id": 10, "answer": "red 1"}
    assert check_vqa(path, official / "questions.json") == []
    (official / "one.json").write_text('[{"question_id": 11, "answer": "x"}]')
    with pytest.raises(DataError, match="2 question_ids are missing"):
        write_vqa(official / "one.json", official / "questions.json", "ours", official / "few")
    filled = write_vqa(
        official / "one.json", official / "questions.json", "ours", official / "few", fill_missing=True
    )
    assert {row["question_id"]: row["answer"] for row in json.loads(filled.read_text())} == {10: "", 11: "x", 12: ""}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("results.json", "expected v2_OpenEnded"),
        ("v2_OpenEnded_mscoco_test2015__results.json", "empty"),
        ("v2_OpenEnded_mscoco_val2014_a_results.json", "another split"),
    ],
)
def test_flaws_of_a_vqa_name(official: Path, name: str, sentence: str) -> None:
    (official / name).write_text((official / "answers.json").read_text())
    (problem,) = check_vqa(official / name, official / "questions.json")
    assert sentence in problem


def test_vizwiz(official: Path) -> None:
    (official / "p.json").write_text(json.dumps([{"image": f"{i}.jpg", "answer": "Yes."} for i in (1, 2)]))
    with pytest.raises(DataError, match="1 images are missing, such as '3.jpg'"):
        write_vizwiz(official / "p.json", official / "vizwiz.json", official / "out")
    path = write_vizwiz(official / "p.json", official / "vizwiz.json", official / "out", fill_missing=True)
    assert check_vizwiz(path, official / "vizwiz.json") == []
    assert {"image": "1.jpg", "answer": "yes"} in json.loads(path.read_text())


def test_commands(official: Path, capsys) -> None:
    lists = ["--val-images", str(coco_lists(official)[0]), "--test-images", str(coco_lists(official)[1])]
    captions = str(official / "captions.jsonl")
    write = ["submit", "coco", "--val", captions, "--test", captions, *lists, "--output", str(official / "out")]
    assert main(write) == 2
    assert "--algorithm is not given" in capsys.readouterr().err
    assert main([*write, "--algorithm", "ours"]) == 0
    path = capsys.readouterr().out.strip()
    assert main(["submit", "coco", *lists, "--validate", path]) == 0
    assert "would be accepted" in capsys.readouterr().out
    questions = ["--questions", str(official / "questions.json")]
    assert main(["submit", "vqa", *questions, "--validate", str(official / "answers.json")]) == 1
    assert "expected v2_OpenEnded" in capsys.readouterr().err
    vizwiz = ["submit", "vizwiz", "--questions", str(official / "vizwiz.json")]
    assert main([*vizwiz, "--validate", str(official / "answers.json")]) == 1
    assert "images are missing" in capsys.readouterr().err
