"""ScienceQA's answer extraction and accuracy table; a text that names no choice is never guessed in silence."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RULES = ("strict", "original", "recorded")
"""What becomes of a text from which no choice can be read. strict: it is wrong. original: a random choice, as in
the authors' code, which adds about 1 / choices for each of them to the score. recorded: the choices that a published
result file recorded, its random ones among them; the texts are not looked at."""
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")


def extract_choice(text: str, choices: int) -> int | None:
    """Place of the chosen answer: a bare letter, "B. ...", or exactly one "The answer is B."; else None."""
    text = text.strip()
    letters = LETTERS[:choices]
    if len(text) == 1:
        found = [text]
    elif re.match(r"[A-Z]\. ", text):
        found = [text[0]]
    else:
        found = re.findall(r"The answer is ([A-Z])\.", text)
    return letters.index(found[0]) if len(found) == 1 and found[0] in letters else None


def guess(problem_id: str, choices: int) -> int:
    """A random choice that is the same in every run."""
    return random.Random(problem_id).randrange(choices)


def columns_of(subject: str, grade: int, has_text: bool, has_image: bool) -> list[str]:
    """The columns of the table that a problem counts in."""
    names = [{"natural science": "NAT", "social science": "SOC", "language science": "LAN"}[subject]]
    names += ["TXT"] * has_text + ["IMG"] * has_image + ["NO"] * (not has_text and not has_image)
    return [*names, "G1-6" if grade <= 6 else "G7-12", "Avg"]


def accuracy_table(rows: Sequence[tuple[Sequence[str], bool]]) -> dict[str, float]:
    """(columns of a problem, answered rightly) -> x100 for each column that has problems."""
    counts = {name: [right for names, right in rows if name in names] for name in COLUMNS}
    return {name: 100 * sum(rights) / len(rights) for name, rights in counts.items() if rights}
