"""What a score on questions is worth: answers that were given without a look at the image, scored beside it.

other images                each question with the image of another one; `excitor-mm predict --other-images`
commonest training answer   what people answered most often in training to a question of the same text, or else of
                            the same type, or else to any
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from excitor_mm.data.samples import Question
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.errors import DataError
from excitor_mm.metrics.vqa import Answered, score_answers
from excitor_mm.references import Id, read_answers

OTHER_IMAGES = "other images"
COMMONEST = "commonest training answer"


def score_controls(
    truth: Mapping[Id, Answered], references: str, rule: str, other_images: Path | None, training: str | None
) -> dict[str, dict[str, float]]:
    """Control -> accuracy x100 of all questions ("accuracy") and of each answer type.

    Args:
        truth: people's answers.
        references: where they came from; with `training` it must be shards, which alone hold the questions' texts.
        rule: see `score_answers`.
        other_images: answers to the same questions with other images.
        training: shards with answered questions.

    Raises:
        DataError: files that do not fit each other.
    """
    answers: dict[str, Mapping[Id, str]] = {}
    if other_images is not None:
        answers[OTHER_IMAGES] = read_answers(other_images)
    if training is not None:
        if Path(references).suffix in (".json", ".gz"):
            raise DataError(
                f"{references} holds no texts of questions to compare with training: give shards instead."
            )
        answers[COMMONEST] = commonest_answers(read_questions(training), read_questions(references))
    scored = {name: score_answers(given, truth, rule) for name, given in answers.items()}
    return {name: {"accuracy": scores.overall, **scores.per_answer_type} for name, scores in scored.items()}


def commonest_answers(training: Mapping[Id, Question], asked: Mapping[Id, Question]) -> dict[Id, str]:
    """Question id -> see the head of this file; of equally frequent answers the alphabetically first."""
    said: dict[tuple[str, str], Counter[str]] = {}
    for question in training.values():
        for group in _groups(question):
            said.setdefault(group, Counter()).update(question.answers)
    best = {group: min(counts, key=lambda text: (-counts[text], text)) for group, counts in said.items() if counts}
    if not best:
        raise DataError("The training questions have no answers: give shards that were packed with --answers.")
    return {i: next(best[group] for group in _groups(question) if group in best) for i, question in asked.items()}


def _groups(question: Question) -> list[tuple[str, str]]:
    """Whose answers a question may be answered by, the closest first."""
    return [("text", question.question.strip().lower()), ("type", question.question_type), ("any", "")]


def read_questions(shards: str) -> dict[Id, Question]:
    """Question id -> the question.

    Raises:
        DataError: not shards, without questions, or with samples that cannot be read.
    """
    bad: list[BadRecord] = []
    samples = (sample for shard in list_shards(shards) for sample in read_shard(shard, bad.append))
    found: dict[Id, Question] = {one.question_id: one for sample in samples for one in sample.questions}
    if bad or not found:
        raise DataError(
            f"{shards} has {len(found)} questions and {len(bad)} unreadable samples: run `excitor-mm shards check`, "
            "or pack shards with questions."
        )
    return found
