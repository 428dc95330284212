"""Score answers to ScienceQA: our predictions, or result files that others published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from excitor_mm.data.scienceqa import Problem, read_problems
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.evaluate.reports import make_report, write_report_files
from excitor_mm.files import read_json, write_json
from excitor_mm.metrics.bootstrap import Bootstrap, interval
from excitor_mm.metrics.coverage import check_coverage
from excitor_mm.metrics.scienceqa import RULES, accuracy_table, columns_of, extract_choice, guess
from excitor_mm.references import read_answers

PER_QUESTION = "per_question.jsonl"
RESULTS = "scienceqa_results.json"
FATE = {
    "strict": "count as wrong",
    "original": "are random guesses",
    "recorded": "count with the choice that the file records, which may be a random guess",
}


def evaluate_scienceqa(
    predictions: Path,
    problems: Path,
    *,
    splits: Path | None = None,
    split: str | None = "test",
    output: Path | None = None,
    rule: str = "strict",
    subset: bool = False,
) -> dict[str, Any]:
    """Score answers.

    Args:
        predictions: predictions.jsonl with question_id and answer, or a published {"outputs": {id: text}}.
        problems, splits, split: see `read_problems`.
        output: report.json to write, with per_question.jsonl and scienceqa_results.json (the original's format)
            beside it; None: only returned.
        rule: "strict", "original" or "recorded"; see `excitor_mm.metrics.scienceqa`.
        subset: score the problems that both files have; the report says so.

    Returns:
        The report: Avg with its interval, the table, and the number of texts that name no choice.

    Raises:
        DataError: the files do not fit each other.
    """
    if rule not in RULES:
        raise ConfigError(f"The rule is {rule!r}: choose {', '.join(RULES)}.")
    texts, recorded = _read(predictions)
    truth, whole = read_problems(problems, splits, split, subset)
    if subset:
        truth = {i: problem for i, problem in truth.items() if i in texts}
        texts = {i: texts[i] for i in truth}
    check_coverage(texts, truth, "problems")
    if rule == "recorded" and truth.keys() - recorded:
        raise DataError(f"{predictions} records no choice of its own for every problem: take --rule strict.")
    chosen = {i: extract_choice(texts[i], len(problem.choices)) for i, problem in truth.items()}
    failures = [i for i, place in chosen.items() if place is None]
    results = recorded if rule == "recorded" else chosen
    if rule == "original":
        results = {**chosen, **{i: guess(i, len(truth[i].choices)) for i in failures}}
    right = {i: results[i] == problem.answer for i, problem in truth.items()}
    table = accuracy_table([(_columns(problem), right[i]) for i, problem in truth.items()])
    values = np.array([100.0 * value for value in right.values()])
    report = make_report(
        "scienceqa",
        {"accuracy": table["Avg"]},
        predictions=predictions,
        references=str(problems),
        truth={i: [p.question, *p.choices, str(p.answer)] for i, p in truth.items()},
        split=split,
        rule=rule,
        subset_of=whole if len(truth) < whole else None,
        intervals={"accuracy": interval(Bootstrap(len(values)).means(values))},
        table=table,
        extraction_failures=len(failures),
        failed_ids=failures[:100],
    )
    if output is not None:
        rows = [{"question_id": i, "answer": texts[i], "choice": results[i], "right": right[i]} for i in truth]
        write_report_files(output, report, rows, PER_QUESTION)
        correct = sum(right.values())
        original = {"acc": table["Avg"], "correct": correct, "count": len(truth), "outputs": texts}
        original["results"] = {i: results[i] for i in truth}
        write_json(output.with_name(RESULTS), original)
    return report


def _columns(problem: Problem) -> list[str]:
    return columns_of(problem.subject, problem.grade, bool(problem.hint), bool(problem.image))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Problem id -> text, and -> the choice that a published file recorded."""
    if path.suffix == ".json":
        value = read_json(path)
        if isinstance(value, dict) and isinstance(value.get("outputs"), dict):
            recorded = value.get("results")
            return {str(i): str(text) for i, text in value["outputs"].items()}, dict(recorded or {})
    return {str(i): text for i, text in read_answers(path).items()}, {}


def format_table(report: Mapping[str, Any]) -> str:
    """A short table for the terminal."""
    low, high = report["intervals"]["accuracy"]
    of = f", a SUBSET of {report['subset_of']}" if report["subset_of"] else ""
    cells = "  ".join(f"{name} {score:.2f}" for name, score in report["table"].items())
    return (
        f"{report['count']} problems of {report['references']} ({report['references_hash']}){of}, {report['rule']} "
        f"rule; x100\n  {cells}\n  Avg 95 %: {low:.2f} to {high:.2f}\n"
        f"  {report['extraction_failures']} answers name no choice and {FATE[report['rule']]}"
    )
