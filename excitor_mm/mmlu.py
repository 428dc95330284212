"""Base and tuned model answer MMLU: which of " A" to " D" is likeliest after the official few-shot prompt."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from excitor_mm.console import Progress
from excitor_mm.data.mmlu import LETTERS, Question, Subject
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import write_text
from excitor_mm.likelihood import score_next_token
from excitor_mm.metrics.bootstrap import Bootstrap, interval
from excitor_mm.model import ExcitorModel


def answer_questions(
    model: ExcitorModel,
    subjects: Sequence[Subject],
    visual: Tensor | None,
    rows: list[dict[str, Any]],
    path: Path,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Let the base model and the tuned one choose an answer to every question.

    Args:
        model: of both.
        subjects: the questions, and the examples before them.
        visual: float[1, L, 2 or 1, N, R], an image that the tuned model sees meanwhile.
        rows: of an interrupted run; these questions are not asked again.
        path: rows of all questions, written anew after each subject.
        batch_size: questions at a time.

    Returns:
        A row for each question: question_id, answer, base, tuned, their log-probabilities, and the examples shown.

    Raises:
        DataError: a question that does not fit into the context.
        ConfigError: a tokenizer that needs several tokens for " A".
    """
    encode = model.processor.tokenizer.encode
    limit = model.language.config.max_position_embeddings
    done = {row["question_id"] for row in rows}
    total = sum(len(subject.questions) for subject in subjects)
    with Progress("MMLU", total, "questions", done=len(rows)) as bar:
        for subject in subjects:
            if all(question.id in done for question in subject.questions):
                continue
            for shots, group in _by_shots(subject, encode, limit).items():
                encoded = [_with_letters(subject.prompt(question, shots), encode) for question in group]
                prompts, (letters, *_) = zip(*encoded, strict=True)
                both = []
                for what in (model.base_model(), contextlib.nullcontext()):
                    with what:
                        scored = []
                        for batch in score_next_token(model, prompts, letters, visual, batch_size):
                            scored += batch
                            bar.advance(0, subject.name)
                        both.append(scored)
                for question, base, tuned in zip(group, *both, strict=True):
                    rows.append(_row(question, shots, base, tuned))
                bar.advance(len(group))
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _row(question: Question, shots: int, base: list[float], tuned: list[float]) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "answer": question.answer,
        "base": LETTERS[int(np.argmax(base))],
        "tuned": LETTERS[int(np.argmax(tuned))],
        "base_log_probabilities": base,
        "tuned_log_probabilities": tuned,
        "shots": shots,
    }


Encode = Callable[[str], list[int]]


def _by_shots(subject: Subject, encode: Encode, limit: int) -> dict[int, list[Question]]:
    """Questions by how many examples fit into the context before them, as the official code does."""
    groups: dict[int, list[Question]] = {}
    for question in subject.questions:
        fitting = (n for n in range(len(subject.shots), -1, -1) if len(encode(subject.prompt(question, n))) <= limit)
        shots = next(fitting, None)
        if shots is None:
            raise DataError(
                f"The question {question.id} is longer than the {limit} tokens that the language model reads: "
                "leave this subject out."
            )
        groups.setdefault(shots, []).append(question)
    return groups


def _with_letters(prompt: str, encode: Encode) -> tuple[list[int], list[int]]:
    """Tokens before the answer's letter, and the token of each letter there."""
    found = [encode(f"{prompt} {letter}") for letter in LETTERS]
    before, letters = found[0][:-1], [ids[-1] for ids in found]
    if any(ids[:-1] != before for ids in found) or len(set(letters)) < len(LETTERS):
        raise ConfigError("The tokenizer does not give each of ' A' to ' D' a token of its own: MMLU needs that.")
    return before, letters


def score_answers(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Accuracies x100, their paired difference and the agreement; and their intervals."""
    right = np.array([[row["base"] == row["answer"], row["tuned"] == row["answer"]] for row in rows]) * 100.0
    same = np.array([row["base"] == row["tuned"] for row in rows]) * 100.0
    values = {
        "MMLU base": right[:, 0],
        "MMLU tuned": right[:, 1],
        "MMLU change": right[:, 1] - right[:, 0],
        "same letter": same,
    }
    draws = Bootstrap(len(rows))
    return (
        {name: float(value.mean()) for name, value in values.items()},
        {name: interval(draws.means(value)) for name, value in values.items()},
    )


def score_subjects(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Accuracy of both by subject, x100."""
    subjects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        subjects.setdefault(row["question_id"].rpartition("/")[0], []).append(row)
    return {
        name: {
            which: 100.0 * sum(row[which] == row["answer"] for row in group) / len(group)
            for which in ("base", "tuned")
        }
        for name, group in subjects.items()
    }
