"""What one training or evaluation sample is, and how it lies in a tar shard.

    key.jpg    the encoded image, bytes untouched; none where there is only text
    key.json   {"image_id": 73, "captions": [...], "questions": [{"question_id", "question", "answers", ...}],
                "problem": {...}, "dialogue": {"system": "", "turns": [{"question", "context", "answer"}]}}

Facts only: `data/tasks.py` makes prompts of them. img2dataset shards (key.jpg, key.txt, key.json with "caption") are
read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from excitor_mm.data.scienceqa import Problem, parse_problem
from excitor_mm.errors import DataError
from excitor_mm.templates import Turn

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class BadSample(DataError):
    """A sample that cannot be used; `reason` is short enough to be counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Two arguments, so that it survives the way out of a worker process."""
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Question:
    """A question about the image, in VQAv2's terms."""

    question_id: int
    question: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class Dialogue:
    """An instruction with its answer, or a conversation; all turns have answers."""

    turns: tuple[Turn, ...]
    system: str = ""
    """What the model is told before the first turn."""


@dataclass(frozen=True)
class Sample:
    """One image with what was said and asked about it, or a text alone."""

    key: str
    image_id: int | str
    image: bytes | None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    shard: str = ""
    problem: Problem | None = None
    dialogue: Dialogue | None = None


def clean_caption(caption: str) -> str:
    """White space collapsed. U+2028 and its kin would shift the metric tool's lines."""
    return " ".join(caption.split())


def parse_sample(key: str, fields: Mapping[str, bytes], shard: str = "") -> Sample:
    """A sample from the members of a shard.

    Args:
        key: what the members' names have in common.
        fields: extension without dot, lower case -> content.
        shard: file name, for messages.

    Raises:
        BadSample: neither an image nor a text that needs none, or JSON that is broken or of the wrong types.
    """
    image = next((fields[extension] for extension in IMAGE_EXTENSIONS if extension in fields), None)
    try:
        facts: Any = json.loads(fields.get("json", b"{}"))
        captions = facts.get("captions", [facts["caption"]] if facts.get("caption") else [])
        if not captions and "txt" in fields:
            captions = [fields["txt"].decode("utf-8")]
        image_id = facts.get("image_id", int(key) if key.isdecimal() else key)
        if not isinstance(image_id, (int, str)) or isinstance(image_id, bool):
            raise TypeError(f"image_id is {image_id!r}, expected a number or a text")
        cleaned = tuple(clean_caption(caption) for caption in _list_of(str, captions, "captions"))
        questions = tuple(_question(row) for row in _list_of(dict, facts.get("questions", []), "questions"))
        problem = parse_problem(str(image_id), facts["problem"]) if facts.get("problem") else None
        dialogue = _dialogue(facts["dialogue"]) if facts.get("dialogue") else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        message = f"{shard}: sample {key} has unusable JSON or text ({error})."
        raise BadSample("json invalid", message) from error
    if image is None and dialogue is None and (problem is None or problem.image is not None):
        raise BadSample("no image", f"{shard}: sample {key} has no image (.jpg, .png or .webp).")
    return Sample(key, image_id, image, tuple(c for c in cleaned if c), questions, shard, problem, dialogue)


def _list_of(kind: type, value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise TypeError(f"{name} is not a list of {kind.__name__}")
    return value


def _question(row: dict[str, Any]) -> Question:
    if not isinstance(row["question_id"], int) or not isinstance(row["question"], str):
        raise TypeError("a question needs a number as question_id and a text as question")
    return Question(
        question_id=row["question_id"],
        question=clean_caption(row["question"]),
        answers=tuple(_list_of(str, row.get("answers", []), "answers")),
        question_type=str(row.get("question_type", "")),
        answer_type=str(row.get("answer_type", "")),
    )


def _dialogue(facts: dict[str, Any]) -> Dialogue:
    rows = _list_of(dict, facts["turns"], "turns")
    turns = tuple(Turn(question=row["question"], context=row["context"], answer=row["answer"]) for row in rows)
    if not turns or not all(isinstance(part, str) for turn in turns for part in (turn.question, turn.answer)):
        raise TypeError("a dialogue needs turns with texts as question and answer")
    return Dialogue(turns, str(facts.get("system", "")))


def sample_to_fields(sample: Sample) -> dict[str, bytes]:
    """The inverse of `parse_sample`; equal samples give equal bytes."""
    facts: dict[str, Any] = {"image_id": sample.image_id, "captions": list(sample.captions)}
    if sample.questions:
        facts["questions"] = [asdict(question) for question in sample.questions]
    if sample.problem is not None:
        facts["problem"] = asdict(sample.problem)
    if sample.dialogue is not None:
        rows = [{"question": t.question, "context": t.context, "answer": t.answer} for t in sample.dialogue.turns]
        facts["dialogue"] = {"system": sample.dialogue.system, "turns": rows}
    fields = {"json": json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8")}
    return fields if sample.image is None else {image_extension(sample.image): sample.image, **fields}


def image_extension(image: bytes) -> str:
    """The extension of an encoded image by its first bytes."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"
