"""ScienceQA (Lu et al. 2022): problems.json with pid_splits.json, and the prompt formats of its literature.

A format such as QCM-ALE names the order of the parts, input before the dash and output behind it:
Q question, C context (the hint, and the image's caption where one is given), M options, A answer, L lecture,
E explanation (the "solution"). QCM-LEPA is LLaVA's: lecture and solution, a line "###", the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import read_json
from excitor_mm.templates import Turn

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
INPUTS = {"Q": "Question: {question}", "C": "Context: {context}", "M": "Options: {options}"}


@dataclass(frozen=True)
class Problem:
    """One question of ScienceQA."""

    problem_id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right choice."""
    hint: str
    lecture: str
    solution: str
    subject: str
    """natural, social or language science."""
    grade: int
    """1 to 12."""
    image: str | None
    """File name; the file lies at <split>/<problem_id>/<image>."""
    split: str


def read_problems(
    problems: Path, splits: Path | None = None, split: str | None = None, subset: bool = False
) -> tuple[dict[str, Problem], int]:
    """Problem id -> problem, and how many problems the split names.

    Args:
        problems: problems.json.
        splits: pid_splits.json; without it a problem's own "split" decides.
        split: train, val, test, trainval, minitrain, minival or minitest; None: all.
        subset: take it that problems of the split are missing from problems.json.

    Raises:
        DataError: not such files, or no problem left.
    """
    value = read_json(problems)
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        raise DataError(f"{problems} is not an object of problems: give ScienceQA's problems.json.")
    wanted = [i for i, row in value.items() if split is None or row.get("split") == split]
    if splits is not None:
        lists = read_json(splits)
        if not isinstance(lists, dict) or not isinstance(lists.get(split or ""), list):
            known = ", ".join(lists) if isinstance(lists, dict) else "none"
            raise DataError(f"{splits} has no list {split!r}: choose of {known} with --split.")
        wanted = [str(i) for i in lists[split or ""]]
    found = [i for i in wanted if i in value]
    if not found:
        raise DataError(f"No problem of {problems} is in the split {split!r}: check --split.")
    if len(found) < len(wanted) and not subset:
        raise DataError(
            f"{problems} lacks {len(wanted) - len(found)} of {len(wanted)} problems of {split!r}: download it again, "
            "or pass --subset."
        )
    found_problems = {}
    for i in found:
        try:
            found_problems[i] = parse_problem(i, value[i])
        except ValueError as error:
            raise DataError(f"{problems}: {error}.") from error
    return found_problems, len(wanted)


def parse_problem(problem_id: str, row: Any) -> Problem:
    """A problem from its entry of problems.json, or from a shard.

    Raises:
        ValueError: not such an entry, more choices than letters, or an answer that is none of them.
    """
    try:
        problem = Problem(
            problem_id,
            str(row["question"]),
            tuple(map(str, row["choices"])),
            int(row["answer"]),
            str(row["hint"] or ""),
            str(row["lecture"] or ""),
            str(row["solution"] or ""),
            str(row["subject"]),
            int(str(row["grade"]).removeprefix("grade")),
            row["image"],
            str(row["split"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"problem {problem_id} is not as in ScienceQA ({reason})") from error
    if not 0 <= problem.answer < len(problem.choices) <= len(LETTERS):
        raise ValueError(
            f"problem {problem_id} has {len(problem.choices)} choices and answer {problem.answer}; expected "
            f"at most {len(LETTERS)} choices with the answer among them"
        )
    return problem


def format_problem(problem: Problem, style: str, caption: str = "") -> tuple[str, str]:
    """The prompt, which ends in "Answer:", and the target behind it; see `problem_turn`."""
    turn = problem_turn(problem, style, caption)
    return turn.text, turn.answer or ""


def problem_turn(problem: Problem, style: str, caption: str = "") -> Turn:
    """A problem as a user's turn, which ends in "Answer:", with its target; the context may be shortened.

    Args:
        problem: what to ask.
        style: such as "QCM-A", "CQM-LEA", "QCMLE-A" (lecture and solution given) or "QCM-LEPA".
        caption: of the image, for models that see none; joins the context.

    Raises:
        ConfigError: a format that is not of this kind.
    """
    given, dash, wanted = style.partition("-")
    known = dash and set(given) <= set("QCMLE") and {"Q", "M"} <= set(given) and set(wanted) <= set("ALEP")
    if not known or "A" not in wanted or len(set(style)) < len(style):
        raise ConfigError(f"The ScienceQA format is {style!r}, expected one such as QCM-A, QCM-ALE or QCM-LEPA.")
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    context = " ".join(filter(None, (problem.hint, caption))) or "N/A"
    parts = {"question": problem.question, "context": context, "options": options}
    explanations = {"L": problem.lecture, "E": problem.solution}
    lines = [INPUTS[letter].format(**parts) for letter in given if letter in INPUTS]
    if because := _join(explanations[letter] for letter in given if letter in explanations):
        lines.insert(given.index("L" if "L" in given else "E"), f"BECAUSE: {because}")
    place = lines.index(f"Context: {context}") if "C" in given else 0
    before, after = "\n".join(lines[:place]), "\n".join([*lines[place + ("C" in given) :], "Answer:"])
    return Turn(before, lines[place] if "C" in given else "", after, _target(problem, wanted))


def _target(problem: Problem, wanted: str) -> str:
    explanations = {"L": problem.lecture, "E": problem.solution}
    answer = answer_sentence(problem.answer)
    before, _, after = wanted.partition("A")
    reasons = _join(explanations[letter] for letter in before if letter in explanations)
    if "P" in before:
        return f"{reasons}\n###\n{answer}"
    if tail := _join(explanations[letter] for letter in after if letter in explanations):
        return f"{answer} BECAUSE: {tail}"
    return _join((reasons, answer))


def answer_sentence(place: int) -> str:
    """How the literature writes a choice."""
    return f"The answer is {LETTERS[place]}."


def _join(texts: Any) -> str:
    return " ".join(text for text in texts if text)
