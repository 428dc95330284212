"""Questions about images in VQAv2's files (OK-VQA and VizWiz use them, too), read into one record an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excitor_mm.data.pack import DataSet, Id, Record, source_facts
from excitor_mm.data.samples import Question, Sample, clean_caption
from excitor_mm.errors import DataError
from excitor_mm.files import read_json


def read_vqa(images: Path, questions: Path, answers: Path | None = None) -> DataSet:
    """One record an image, with all its questions.

    Args:
        images: folder with the pictures, or with train2014/, val2014/ in it.
        questions: VQAv2 questions JSON.
        answers: VQAv2 annotations JSON; None for questions without answers (test2015).

    Raises:
        DataError: not such files.
    """
    value = read_json(questions)
    subtype = str(value.get("data_subtype") or "") if isinstance(value, dict) else ""
    records = []
    problems: dict[str, list[Id]] = {}
    for image_id, asked in read_questions(questions, answers).items():
        unanswered = [q.question_id for q in asked if answers is not None and not any(a.strip() for a in q.answers)]
        problems.setdefault("without an answer", []).extend(unanswered)
        kept = tuple(question for question in asked if question.question_id not in unanswered)
        if kept:
            key = f"{image_id:012d}" if isinstance(image_id, int) else Path(image_id).stem
            paths = image_paths(images, image_id, subtype)
            records.append(Record(Sample(key, image_id, None, (), kept), paths))
    return DataSet(records, source_facts(images=images, questions=questions, answers=answers), problems)


def image_paths(images: Path, image_id: Id, subtype: str) -> tuple[Path, ...]:
    """Where the image of a question may lie: by COCO's names, by its bare number, or by its name."""
    if isinstance(image_id, str):
        return (images / image_id,)
    split = "test2015" if subtype == "test-dev2015" else subtype
    name = f"COCO_{split}_{image_id:012d}.jpg"
    names = (f"{split}/{name}", name, f"{image_id:012d}.jpg", f"{image_id}.jpg", f"{image_id}.png")
    return tuple(images / name for name in names)


def read_questions(questions: Path, answers: Path | None = None) -> dict[Id, list[Question]]:
    """Image id (VizWiz: file name) -> questions with what people answered.

    Raises:
        DataError: not VQAv2's files, or a question twice.
    """
    found: dict[Any, dict[str, Any]] = {}
    if answers is not None:
        rows = listed_rows(answers, read_json(answers), "annotations", "question_id", "answers")
        for row in rows:
            if not isinstance(row["question_id"], int):
                raise DataError(f"{answers}: expected a number as question_id: {str(row)[:80]}")
            found[row["question_id"]] = row
    result: dict[Id, list[Question]] = {}
    seen: set[int] = set()
    for row in listed_rows(questions, read_json(questions), "questions", "image_id", "question", "question_id"):
        number, image_id = row["question_id"], row["image_id"]
        if not isinstance(number, int) or isinstance(image_id, bool) or not isinstance(image_id, (int, str)):
            raise DataError(f"{questions}: expected a number as question_id, and an image_id: {str(row)[:80]}")
        if number in seen:
            raise DataError(f"{questions} has question_id {number} twice: download it again.")
        seen.add(number)
        answered = found.get(number, {"answers": []})
        said = listed_rows(answers or questions, answered, "answers", "answer")
        result.setdefault(image_id, []).append(
            Question(
                number,
                clean_caption(str(row["question"])),
                tuple(str(answer["answer"]) for answer in said),
                str(answered.get("question_type", "")),
                str(answered.get("answer_type", "")),
            )
        )
    return result


def listed_rows(path: Path, value: Any, *keys: str) -> list[dict[str, Any]]:
    """A list of objects under value[keys[0]] that all have the other keys."""
    rows = value.get(keys[0]) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path} has no list {keys[0]!r}: give the file in its official format.")
    for row in rows:
        if not isinstance(row, dict) or any(key not in row for key in keys[1:]):
            raise DataError(f"{path}: an entry of {keys[0]!r} lacks one of {list(keys[1:])}: {str(row)[:80]}")
    return rows
