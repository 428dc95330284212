"""Captions of easy-VQA's drawings say what the answers to their questions tell, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from easy_vqa import describe  # noqa: E402 - lies beside the tools


@pytest.mark.parametrize(
    ("rows", "caption"),
    [
        ([("what is the blue shape?", "rectangle")], "a blue rectangle"),
        ([("what color is the circle?", "teal"), ("is there a red shape?", "no")], "a teal circle"),
        ([("does the image not contain a gray shape?", "no"), ("is no circle present?", "yes")], "a gray shape"),
        ([("is a triangle present?", "yes"), ("is there not a red shape in the image?", "yes")], "a triangle"),
        ([("is there a green shape?", "no")], "a shape"),
    ],
)
def test_captions_say_what_the_answers_tell(rows: list[tuple[str, str]], caption: str) -> None:
    assert describe(rows) == caption
