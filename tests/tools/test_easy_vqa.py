"""easy-VQA's files: captions say what the answers tell, rare answers stand apart, text rows are compared rightly."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from easy_vqa import Row, describe, negated, text_rows, write_split  # noqa: E402 - lies beside the tools


@pytest.mark.parametrize(
    ("rows", "caption"),
    [
        ([("what is the blue shape?", "rectangle")], "a blue rectangle"),
        ([("what color is the circle?", "teal"), ("is there a red shape?", "no")], "a teal circle"),
        ([("does the image not contain a gray shape?", "no"), ("is no circle present?", "yes")], "a gray shape"),
        ([("is a triangle present?", "yes"), ("is there not a red shape in the image?", "yes")], "a triangle"),
        ([("is there a green shape?", "no")], "a shape"),
    ],
)
def test_captions_say_what_the_answers_tell(rows: list[tuple[str, str]], caption: str) -> None:
    assert describe([Row(number, *row, image_id=0) for number, row in enumerate(rows)]) == caption


def test_text_rows_are_answered_by_their_own_caption_and_both_answers_are_as_frequent() -> None:
    asked = {"is there a red shape?": "red", "is no circle present?": "circle", "is there not a teal shape?": "teal"}
    rows = text_rows(list(asked))
    matches = 0
    for row in rows:
        question, caption, lead = row["instruction"].split("\n")
        match = asked[question] in caption.removeprefix("Picture: ").split()
        matches += match
        assert row["output"] == ("yes" if match != negated(question) else "no")
        assert lead == "Answer:"
    assert abs(matches / len(rows) - 0.5) < 0.05
    assert {row["instruction"].split("\n")[0] for row in rows} == set(asked)


def test_rare_questions_are_those_whose_answer_their_words_do_not_foretell(tmp_path: Path) -> None:
    asked = [
        ("is there a red shape?", "no", 0),
        ("is there a red shape?", "no", 1),
        ("is there a red shape?", "yes", 2),
        ("what color is the circle?", "red", 2),
        ("what color is the circle?", "blue", 1),
    ]
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        archive.writestr("easy_vqa/data/train/questions.json", json.dumps(asked))
        for image_id in range(3900):
            archive.writestr(f"easy_vqa/data/train/images/{image_id}.png", b"")
        assert write_split(archive, "train", tmp_path) == 5

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        return found

    assert [row["image_id"] for row in read("questions")["questions"]] == [0, 1, 2, 2, 1]
    assert [row["question_id"] for row in read("rare_questions")["questions"]] == [2]
    assert [row["question_id"] for row in read("rare_answers")["annotations"]] == [2]
    assert [row["caption"] for row in read("rare_captions")["annotations"]] == ["a red circle"]
