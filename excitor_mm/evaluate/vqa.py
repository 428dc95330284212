"""Score a file of answers to questions about images: VQAv2, OK-VQA, VizWiz and TextVQA as they are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from excitor_mm.errors import DataError
from excitor_mm.evaluate.reports import make_report, write_report_files
from excitor_mm.evaluate.vqa_controls import read_questions, score_controls
from excitor_mm.files import read_json
from excitor_mm.metrics.bootstrap import Bootstrap, interval
from excitor_mm.metrics.vqa import Answered, score_answers
from excitor_mm.references import Id, read_answers

PER_QUESTION = "per_question.jsonl"


def evaluate_answers(
    predictions: Path,
    references: str,
    *,
    output: Path | None = None,
    rule: str = "official",
    other_images: Path | None = None,
    training: str | None = None,
) -> dict[str, Any]:
    """Score answers.

    Args:
        predictions: predictions.jsonl or a results list; see `read_answers`.
        references: see `read_answered`.
        output: report.json to write, with per_question.jsonl beside it; None: only returned.
        rule: "official" or "normalized"; see `excitor_mm.metrics.vqa`.
        other_images, training: see `score_controls`; their scores stand beside those of the predictions.

    Returns:
        The report; scores are x100.

    Raises:
        DataError: the files do not fit each other.
    """
    guesses, truth = read_answers(predictions), read_answered(references)
    result = score_answers(guesses, truth, rule)
    values = np.array(list(result.per_question.values()))
    report = make_report(
        "vqa",
        {"accuracy": result.overall},
        predictions=predictions,
        references=references,
        truth={i: row.answers for i, row in truth.items()},
        rule=rule,
        intervals={"accuracy": interval(Bootstrap(len(values)).means(values))},
        per_answer_type=result.per_answer_type,
        per_question_type=result.per_question_type,
        controls=score_controls(truth, references, rule, other_images, training),
        empty_answers=sum(not answer.strip() for answer in guesses.values()),
    )
    if output is not None:
        rows = [
            {"question_id": i, "answer": guesses[i], "accuracy": round(score, 4)}
            for i, score in result.per_question.items()
        ]
        write_report_files(output, report, rows, PER_QUESTION)
    return report


def read_answered(path: str) -> dict[Id, Answered]:
    """Question id -> what people answered.

    Args:
        path: VQAv2 or OK-VQA annotations; VizWiz annotations (its own list, keyed by image, or in VQA format);
            TextVQA's file; or shards with questions.

    Raises:
        DataError: none of these, or no answers in it.
    """
    if Path(path).suffix not in (".json", ".gz"):
        return {i: Answered(q.answers, q.answer_type, q.question_type) for i, q in read_questions(path).items()}
    value = read_json(Path(path))
    try:
        if isinstance(value, list):  # VizWiz
            rows = [(row["image"], row) for row in value]
        elif "data" in value:  # TextVQA
            rows = [(row["question_id"], row) for row in value["data"]]
        else:
            rows = [(row["question_id"], row) for row in value["annotations"]]
        found = {
            key: Answered(
                tuple(answer if isinstance(answer, str) else str(answer["answer"]) for answer in row["answers"]),
                str(row.get("answer_type") or ""),
                str(row.get("question_type") or ""),
            )
            for key, row in rows
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a file of answered questions ({type(error).__name__}: {error}): give VQAv2, OK-VQA or "
            "VizWiz annotations, or TextVQA's file with answers."
        ) from error
    if len(found) < len(rows):
        twice = [key for key, count in Counter(key for key, _ in rows).items() if count > 1]
        raise DataError(f"{path} has {len(twice)} questions twice {twice[:5]}: download it again.")
    return found


def format_accuracy(report: Mapping[str, Any]) -> str:
    """A short table for the terminal."""
    low, high = report["intervals"]["accuracy"]
    lines = [
        f"{report['count']} questions of {report['references']} ({report['references_hash']}), "
        f"{report['rule']} rule; x100",
        f"  accuracy {report['scores']['accuracy']:6.2f}  95 %: {low:.2f} to {high:.2f}",
    ]
    for kind in ("per_answer_type", "per_question_type"):
        lines += [f"  {name}: {score:.2f}" for name, score in report[kind].items()]
    for name, control in report["controls"].items():
        shown = ", ".join(f"{kind} {score:.2f}" for kind, score in control.items())
        lines.append(f"Without the image, {name}: {shown}")
    if report["empty_answers"]:
        lines.append(f"{report['empty_answers']} answers are empty.")
    return "\n".join(lines)
