"""VQA, ScienceQA and instruction files to shards: facts come out as they went in, and what cannot go in is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from excitor_mm.cli import main
from excitor_mm.data.check import check_shards
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.templates import Turn
from tests.conftest import jpeg


def write(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def packed(folder: Path) -> dict[Any, Sample]:
    assert check_shards(str(folder)).ok
    return {s.image_id: s for shard in list_shards(str(folder)) for s in read_shard(shard, lambda _: None)}


def test_questions_are_found_with_their_images(tmp_path: Path, capsys) -> None:
    """VQAv2's names, and questions nobody answered."""
    images = tmp_path / "images" / "val2014"
    images.mkdir(parents=True)
    for number in (5, 6):
        (images / f"COCO_val2014_{number:012d}.jpg").write_bytes(jpeg())
    asked = [{"image_id": 5 + (n > 1), "question_id": n, "question": f"What {n}?"} for n in range(4)]
    answers = [{"question_id": n, "answers": [{"answer": "yes"}] * (n != 3)} for n in range(4)]
    questions = write(tmp_path / "q.json", {"data_subtype": "val2014", "questions": asked})
    command = ["pack-vqa", "--images", str(tmp_path / "images"), "--questions", questions, "--output"]
    given = ["--answers", write(tmp_path / "a.json", {"annotations": answers})]
    assert main([*command, str(tmp_path / "out"), *given]) == 2
    assert "1 without an answer [3]" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out"), *given, "--allow-missing"]) == 0
    found = packed(tmp_path / "out")
    assert [[q.question_id for q in found[i].questions] for i in (5, 6)] == [[0, 1], [2]]
    assert found[5].questions[1].answers == ("yes",)
    assert found[5].image == jpeg()
    assert main([*command, str(tmp_path / "blind")]) == 0  # test2015 has no answers
    assert len(packed(tmp_path / "blind")[6].questions) == 2
    twice = write(tmp_path / "twice.json", {"questions": [*asked, asked[0]]})
    assert main([*command[:4], twice, "--output", str(tmp_path / "twice")]) == 2
    assert "question_id 0 twice" in capsys.readouterr().err


def test_problems_with_and_without_their_images(tmp_path: Path, capsys) -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "H", "lecture": "", "solution": ""}
    row |= {"subject": "natural science", "grade": "grade3", "split": "train"}
    problems = {"3": {**row, "image": "image.png"}, "12": {**row, "image": None}}
    command = ["pack-scienceqa", "--problems", write(tmp_path / "problems.json", problems), "--output"]
    assert main([*command, str(tmp_path / "x")]) == 2
    assert "--text-only" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "x"), "--images", str(tmp_path)]) == 2
    assert "1 missing ['3']" in capsys.readouterr().err
    captions = write(tmp_path / "captions.json", {"captions": {"3": "a map"}})
    assert main([*command, str(tmp_path / "text"), "--text-only", "--captions", captions]) == 0
    found = packed(tmp_path / "text")
    assert found["3"].captions == ("a map",)
    assert found["3"].image is None
    assert found["12"].problem is not None
    (tmp_path / "train" / "3").mkdir(parents=True)
    (tmp_path / "train" / "3" / "image.png").write_bytes(jpeg())
    assert main([*command, str(tmp_path / "both"), "--images", str(tmp_path)]) == 0
    assert [packed(tmp_path / "both")[i].image is not None for i in ("3", "12")] == [True, False]
    many = write(tmp_path / "many.json", {"1": {**row, "image": None, "choices": [str(n) for n in range(27)]}})
    assert main(["pack-scienceqa", "--problems", many, "--text-only", "--output", str(tmp_path / "many")]) == 2
    assert "at most 26 choices" in capsys.readouterr().err


def test_instructions_in_all_their_formats(tmp_path: Path, capsys) -> None:
    chat = [{"role": "system", "content": "Be brief."}]
    chat += [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    llava = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
    rows = [
        {"instruction": "Add", "input": "1 2", "output": "3\n  lines"},
        {
            "id": "seed",
            "instruction": "Say",
            "instances": [{"input": "", "output": "a"}, {"input": "b", "output": "c"}],
        },
        {"messages": chat},
        {"id": "photo", "image": "p.jpg", "conversations": llava},
    ]
    (tmp_path / "p.jpg").write_bytes(jpeg())
    command = ["pack-instructions", "--output", str(tmp_path / "out"), "--rows"]
    assert main([*command, write(tmp_path / "rows.json", rows)]) == 2
    assert "--images" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "rows.json"), "--images", str(tmp_path)]) == 0
    found = packed(tmp_path / "out")
    assert found.keys() == {0, "seed.0", "seed.1", 3, "photo"}
    turns = {i: list(sample.dialogue.turns) for i, sample in found.items()}
    assert turns[0] == [Turn("Add", "1 2", answer="3\n  lines")]
    assert turns["seed.1"] == [Turn("Say", "b", answer="c")]
    assert turns[3] == [Turn(f"user {n}", answer=f"assistant {n}") for n in range(2)]
    assert found[3].dialogue.system == "Be brief."
    assert turns["photo"][0][0] == "What is it?"
    assert found["photo"].image == jpeg()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"instruction": "x", "output": " "}], "1 without an answer"),
        ([{"id": 1, "instruction": "x", "output": "y"}] * 2, "1 duplicate [1]"),
        ([{"question": "x"}], "neither an instruction"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "take turns"),
        ([{"messages": [{"role": "tool", "content": "x"}]}], "neither an instruction"),
        ([3], "neither an instruction"),
    ],
)
def test_rows_that_cannot_be_packed(tmp_path: Path, capsys, rows: list, sentence: str) -> None:
    command = ["pack-instructions", "--rows", write(tmp_path / "rows.json", rows), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert sentence in capsys.readouterr().err
