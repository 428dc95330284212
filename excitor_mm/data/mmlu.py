"""MMLU from CSV files: the questions, and the official few-shot prompt.

Two layouts are read, both with dev/SUBJECT_dev.csv and test/SUBJECT_test.csv: the original (no header, answers A
to D) and the one with a header row and answers 0 to 3; from a folder, a tar file, or a folder that holds one.
"""

from __future__ import annotations

import csv
import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from excitor_mm.errors import DataError

LETTERS = "ABCD"
SHOTS = 5


@dataclass(frozen=True)
class Question:
    """One multiple-choice question."""

    subject: str
    """As in the file's name, e.g. high_school_physics."""
    number: int
    """Row in the file, from 0."""
    text: str
    """The question."""
    choices: tuple[str, ...]
    """Four."""
    answer: str
    """A, B, C or D."""

    @property
    def id(self) -> str:
        """E.g. anatomy/17."""
        return f"{self.subject}/{self.number}"

    def prompt(self) -> str:
        """Question and choices up to `Answer:`."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)]
        return "\n".join([self.text.strip(), *lines, "Answer:"])


@dataclass(frozen=True)
class Subject:
    """The questions of one subject."""

    name: str
    shots: tuple[Question, ...]
    """Examples with their answers, at most `SHOTS`."""
    questions: tuple[Question, ...]
    """The test questions, or a sample of them."""
    available: int
    """Test questions in the file."""

    def prompt(self, question: Question, shots: int = SHOTS) -> str:
        """The official prompt; the answer is " A" to " D"."""
        title = self.name.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {title}."
        examples = [f"{shot.prompt()} {shot.answer}" for shot in self.shots[:shots]]
        return "\n\n".join([head, *examples, question.prompt()])


def read_mmlu(path: Path, per_subject: int | None = None, seed: int = 0) -> list[Subject]:
    """All subjects, in alphabetical order.

    Args:
        path: see above.
        per_subject: draw at most so many test questions of each subject; None: all.
        seed: of the draw.

    Raises:
        DataError: no such files, or a row that is no question.
    """
    files = dict(_csv_files(path))
    tests = sorted(name.removesuffix("_test.csv") for name in files if name.endswith("_test.csv"))
    if not tests:
        raise DataError(f"{path} holds no SUBJECT_test.csv: give MMLU's folder (or tar file) with dev and test.")
    subjects = []
    for name in tests:
        shots = _read(name, f"{name}_dev.csv", files.get(f"{name}_dev.csv", ""))[:SHOTS]
        questions = _read(name, f"{name}_test.csv", files[f"{name}_test.csv"])
        chosen = questions
        if per_subject is not None and per_subject < len(questions):
            chooser = random.Random(f"{seed} {name}")
            chosen = sorted(chooser.sample(questions, per_subject), key=lambda question: question.number)
        subjects.append(Subject(name, tuple(shots), tuple(chosen), len(questions)))
    return subjects


def _csv_files(path: Path) -> Iterator[tuple[str, str]]:
    """File name without folders, and text."""
    if path.is_dir():
        for file in path.rglob("*.csv"):
            yield file.name, file.read_text(encoding="utf-8-sig")
        for file in sorted(path.glob("*.tar*")):
            yield from _csv_files(file)
        return
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() and member.name.endswith(".csv") else None
                if content is not None:
                    yield Path(member.name).name, content.read().decode("utf-8-sig")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is neither a folder nor a readable tar file ({error}): check the path.") from error


def _read(subject: str, name: str, text: str) -> list[Question]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and [rows[0][0].lower(), rows[0][-1].lower()] == ["question", "answer"]:
        rows = rows[1:]
    return [_question(subject, name, number, row) for number, row in enumerate(rows)]


def _question(subject: str, name: str, number: int, row: Sequence[str]) -> Question:
    answers = {**{letter: letter for letter in LETTERS}, **{str(i): letter for i, letter in enumerate(LETTERS)}}
    if len(row) != 6 or row[-1].strip() not in answers:
        raise DataError(
            f"Row {number + 1} of {name} is {row!r:.100}: expected a question, four choices, and an answer A to D or "
            "0 to 3."
        )
    return Question(subject, number, row[0], tuple(row[1:5]), answers[row[-1].strip()])
