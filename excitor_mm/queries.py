"""Questions that a person or a file asks, as conversations.

A file of questions is one of: VQAv2's questions, ScienceQA's problems.json, or rows (a JSON array or JSON lines) with
"question" and, where there are any, "question_id", "image", "context" and "choices".
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from excitor_mm.answer import Asked
from excitor_mm.console import log
from excitor_mm.data.images import BadImage
from excitor_mm.data.pack import Record
from excitor_mm.data.pipeline import TaskFormat
from excitor_mm.data.samples import Sample
from excitor_mm.data.scienceqa import LETTERS, Problem
from excitor_mm.data.scienceqa_files import read_scienceqa
from excitor_mm.data.shards import BadRecord
from excitor_mm.data.stream import StreamItem
from excitor_mm.data.tasks import Conversation
from excitor_mm.data.vqa import read_vqa
from excitor_mm.errors import DataError
from excitor_mm.files import read_json, read_rows
from excitor_mm.model import ExcitorModel
from excitor_mm.templates import Turn


class Query(NamedTuple):
    """A question, and where its image may lie."""

    conversation: Conversation
    paths: tuple[Path, ...] = ()
    """Empty: it has none."""


class Prepared(NamedTuple):
    """What is asked about one image."""

    key: str
    asked: list[Asked]
    """Without what an earlier run answered."""


def ask(
    tasks: TaskFormat,
    question: str,
    *,
    id_: int | str = 0,
    context: str = "",
    choices: Sequence[str] = (),
    history: Sequence[Turn] = (),
) -> Conversation:
    """A question as the samples of a task would ask it.

    Args:
        tasks: of the adapter; ScienceQA's format names the choices by letters, all others score their texts.
        question: the text.
        id_: for predictions.
        context: of the question.
        choices: one of them is the answer; none: it is written.
        history: earlier turns with their answers.

    Raises:
        DataError: no question, or more choices than letters.
    """
    if not question.strip():
        raise DataError("The question is empty: write one.")
    if len(choices) > len(LETTERS):
        raise DataError(f"A question has {len(choices)} choices, at most {len(LETTERS)} are possible.")
    if tasks.task == "scienceqa" and choices:
        problem = Problem(str(id_), question, tuple(choices), 0, context, "", "", "natural science", 1, None, "")
        return tasks.conversations(Sample("", id_, None, problem=problem))[0]
    turns = (*history, Turn(question.strip(), context))
    return Conversation(id_, turns, (), tuple(choices))


def read_queries(path: Path, images: Path | None, tasks: TaskFormat) -> list[Query]:
    """The questions of a file, those about one image side by side.

    Args:
        path: see above.
        images: folder of the images.
        tasks: of the adapter.

    Raises:
        DataError: none of these files.
    """
    try:
        value = read_json(path)
    except DataError:
        value = None  # JSON lines
    if isinstance(value, dict) and "questions" in value:
        return _of_records(read_vqa(images or path.parent, path).records, tasks)
    if isinstance(value, dict) and value and all(isinstance(v, dict) and "choices" in v for v in value.values()):
        return _of_records(read_scienceqa(path, images).records, tasks)
    queries = [_query(path, number, row, images, tasks) for number, row in enumerate(read_rows(path))]
    if len({query.conversation.id for query in queries}) < len(queries):
        raise DataError(f"{path} has a question_id twice: give each question its own.")
    return sorted(queries, key=lambda query: query.paths)


def _of_records(records: Sequence[Record], tasks: TaskFormat) -> list[Query]:
    return [Query(one, paths) for sample, paths in records for one in _conversations(sample, bool(paths), tasks)]


def _conversations(sample: Sample, has_image: bool, tasks: TaskFormat) -> list[Conversation]:
    """As `TaskFormat.conversations`; a question of VQAv2 may be put to an adapter of any task."""
    if tasks.task in ("vqa", "scienceqa"):
        return tasks.conversations(dataclasses.replace(sample, image=b"" if has_image else None))
    return [ask(tasks, question.question, id_=question.question_id) for question in sample.questions]


def _query(path: Path, number: int, row: Any, images: Path | None, tasks: TaskFormat) -> Query:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise DataError(f"{path}: row {number} has no question: {str(row)[:80]}")
    name, choices = row.get("image"), row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{path}: the choices of row {number} are not a list of texts: {str(choices)[:80]}")
    conversation = ask(
        tasks,
        row["question"],
        id_=row.get("question_id", number),
        context=str(row.get("context") or ""),
        choices=choices,
    )
    return Query(conversation, ((images or path.parent) / name,) if name else ())


def read_items(
    queries: Sequence[Query], model: ExcitorModel, *, batch_size: int, rank: int, world_size: int
) -> Iterator[StreamItem]:
    """Batches of this process's share of the questions, like those of an `EvaluationStream`."""
    groups = [(paths, list(group)) for paths, group in itertools.groupby(queries, key=lambda query: query.paths)]
    mine = groups[rank::world_size]
    for start in range(0, len(mine), batch_size):
        batch: list[Prepared] = []
        bad: list[BadRecord] = []
        for paths, group in mine[start : start + batch_size]:
            path = next((path for path in paths if path.is_file()), paths[0] if paths else None)
            try:
                pixels = None if path is None else model.processor.pixels(path)
                batch.append(Prepared(path.name if path else "", [Asked(q.conversation, pixels) for q in group]))
            except BadImage as error:
                log(f"question {group[0].conversation.id}: {error}")
                bad.append(BadRecord(str(path), str(group[0].conversation.id), error.reason))
        yield StreamItem(batch, tuple(bad))
