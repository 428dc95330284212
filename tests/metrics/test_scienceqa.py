"""ScienceQA: published outputs score what was published, and failures are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from excitor_mm.data.scienceqa import Problem, format_problem, read_problems
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.evaluate.scienceqa import evaluate_scienceqa, format_table
from excitor_mm.metrics.scienceqa import COLUMNS, extract_choice

PROBLEM = Problem(
    "1", "Which?", ("x", "y"), 1, "A hint.", "Lecture.", "Solution.", "natural science", 3, None, "test"
)
QUESTION, CONTEXT, OPTIONS = "Question: Which?", "Context: A hint.", "Options: (A) x (B) y"


@pytest.mark.parametrize(
    ("style", "lines", "target"),
    [
        ("QCM-A", [QUESTION, CONTEXT, OPTIONS], "The answer is B."),
        ("CQM-A", [CONTEXT, QUESTION, OPTIONS], "The answer is B."),
        ("QM-A", [QUESTION, OPTIONS], "The answer is B."),
        ("QCM-ALE", [QUESTION, CONTEXT, OPTIONS], "The answer is B. BECAUSE: Lecture. Solution."),
        ("QCM-AEL", [QUESTION, CONTEXT, OPTIONS], "The answer is B. BECAUSE: Solution. Lecture."),
        ("QCM-AL", [QUESTION, CONTEXT, OPTIONS], "The answer is B. BECAUSE: Lecture."),
        ("QCM-LEA", [QUESTION, CONTEXT, OPTIONS], "Lecture. Solution. The answer is B."),
        ("QCM-LEPA", [QUESTION, CONTEXT, OPTIONS], "Lecture. Solution.\n###\nThe answer is B."),
        ("QCMLE-A", [QUESTION, CONTEXT, OPTIONS, "BECAUSE: Lecture. Solution."], "The answer is B."),
        ("QCLM-A", [QUESTION, CONTEXT, "BECAUSE: Lecture.", OPTIONS], "The answer is B."),
    ],
)
def test_formats_of_the_literature(style: str, lines: list[str], target: str) -> None:
    assert format_problem(PROBLEM, style) == ("\n".join([*lines, "Answer:"]), target)


def test_context_joins_hint_and_caption() -> None:
    bare = Problem(**{**PROBLEM.__dict__, "hint": ""})
    assert "Context: N/A\n" in format_problem(bare, "QCM-A")[0]
    assert "Context: A cup.\n" in format_problem(bare, "QCM-A", "A cup.")[0]
    assert "Context: A hint. A cup.\n" in format_problem(PROBLEM, "QCM-A", "A cup.")[0]


@pytest.mark.parametrize("style", ["QCM", "QCM-", "A-QCM", "QQM-A", "QCM-LE", "QCM-AX", ""])
def test_unknown_formats_are_a_sentence(style: str) -> None:
    with pytest.raises(ConfigError, match="expected one such as"):
        format_problem(PROBLEM, style)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        (" A\n", 0),
        ("B. the second", 1),
        ("The answer is B.", 1),
        ("The answer is A. BECAUSE: B is wrong.", 0),
        ("Solution\n###\nThe answer is B.", 1),
        ("C", None),
        ("The answer is C.", None),
        ("The answer is A. The answer is B.", None),
        ("", None),
        ("b", None),
        ("Because", None),
    ],
)
def test_choices_are_read_or_not(text: str, choice: int | None) -> None:
    assert extract_choice(text, 2) == choice


@pytest.fixture
def files(tmp_path: Path) -> Path:
    def row(subject: str, grade: int, hint: str, image: str | None, split: str) -> dict:
        facts = {"subject": subject, "grade": f"grade{grade}", "hint": hint, "image": image, "split": split}
        return {"question": "?", "choices": ["x", "y"], "answer": 0, "lecture": "", "solution": "", **facts}

    problems = {
        "1": row("natural science", 2, "h", None, "test"),
        "2": row("social science", 7, "", "image.png", "test"),
        "3": row("language science", 6, "", None, "test"),
        "4": row("natural science", 12, "h", "image.png", "val"),
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "splits.json").write_text(json.dumps({"test": ["1", "2", "3"], "val": ["4"], "minitest": ["1", "9"]}))
    rows = [("1", "The answer is A."), ("2", "B"), ("3", "no idea")]
    lines = [json.dumps({"question_id": i, "answer": text}) for i, text in rows]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_table_failures_and_the_original_results_file(files: Path) -> None:
    report = evaluate_scienceqa(
        files / "p.jsonl", files / "problems.json", splits=files / "splits.json", output=files / "out" / "report.json"
    )
    assert report["table"] == pytest.approx(
        {"NAT": 100, "SOC": 0, "LAN": 0, "TXT": 100, "IMG": 0, "NO": 0, "G1-6": 50, "G7-12": 0, "Avg": 100 / 3}
    )
    assert tuple(report["table"]) == COLUMNS
    assert (report["extraction_failures"], report["failed_ids"]) == (1, ["3"])
    assert "1 answers name no choice and count as wrong" in format_table(report)
    original = json.loads((files / "out" / "scienceqa_results.json").read_text())
    assert (original["correct"], original["count"], original["results"]["1"]) == (1, 3, 0)
    again = evaluate_scienceqa(files / "out" / "scienceqa_results.json", files / "problems.json", rule="strict")
    assert again["table"] == report["table"]
    guessing = [evaluate_scienceqa(files / "p.jsonl", files / "problems.json", rule="original") for _ in range(2)]
    assert guessing[0]["table"] == guessing[1]["table"]


def test_splits_and_subsets(files: Path) -> None:
    with pytest.raises(DataError, match="lacks 1 of 2 problems of 'minitest'"):
        read_problems(files / "problems.json", files / "splits.json", "minitest")
    with pytest.raises(DataError, match="no list 'best'"):
        read_problems(files / "problems.json", files / "splits.json", "best")
    with pytest.raises(DataError, match="others"):
        evaluate_scienceqa(files / "p.jsonl", files / "problems.json", split="val")
    report = evaluate_scienceqa(
        files / "p.jsonl", files / "problems.json", splits=files / "splits.json", split="minitest", subset=True
    )
    assert (report["count"], report["subset_of"]) == (1, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"choices": ["x"] * 27}, "27 choices"), ({"answer": 2}, "answer 2"), ({"grade": "old"}, "not as in ScienceQA")],
)
def test_unusable_problems_are_a_sentence(files: Path, change: dict, sentence: str) -> None:
    problems = json.loads((files / "problems.json").read_text())
    problems["1"] |= change
    (files / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(DataError, match=sentence):
        read_problems(files / "problems.json")


def test_published_outputs_of_gpt3(shared: Path) -> None:
    """.7452 on these 361 problems by the choices that the file records. 25 of its texts are empty, and those
    choices are random guesses of the authors' code: from the texts alone it is .7064."""
    folder = shared / "scienceqa"

    def score(rule: str) -> dict:
        return evaluate_scienceqa(
            folder / "gpt3_final_test_QCM-ALE_2_seed_3.json",
            folder / "problems_first1773.json",
            splits=folder / "pid_splits.json",
            subset=True,
            rule=rule,
        )

    recorded, strict = score("recorded"), score("strict")
    assert (recorded["count"], recorded["subset_of"]) == (361, 4241)
    assert round(recorded["scores"]["accuracy"], 2) == 74.52
    assert strict["extraction_failures"] == 25
    assert round(strict["scores"]["accuracy"], 2) == 70.64
    assert strict["scores"]["accuracy"] < score("original")["scores"]["accuracy"]
