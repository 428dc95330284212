"""The prompt is the same everywhere, and the palette is a function of the captions alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from excitor_mm.errors import ConfigError
from excitor_mm.palette import FUNCTION_WORDS, choose_palette, content_words
from excitor_mm.prompts import answer_ids, prompt_ids
from excitor_mm.templates import TEMPLATES, PromptFormat, Turn, prompt_text

CAPTIONS = ["A dog runs.", "Two dogs and a Dog!", "The red bus is on the street", "a red dog"]
WORDS = [word for caption in CAPTIONS for word in content_words(caption)]


def test_palette_is_the_most_frequent_content_words() -> None:
    assert choose_palette([(1.0, WORDS)], 2) == ("dog", "red")
    assert not set(choose_palette([(1.0, WORDS)], 99)) & FUNCTION_WORDS


@given(st.permutations(WORDS), st.integers(1, 9), st.sampled_from(["frequent", "shuffled", "spread", "random"]))
def test_palette_does_not_depend_on_the_order_of_captions(order: list[str], size: int, choice: str) -> None:
    palette = choose_palette([(1.0, order)], size, choice)
    assert palette == choose_palette([(1.0, WORDS)], size, choice)
    assert len(set(palette)) == len(palette) <= size


def test_controls_of_the_palette_change_its_order_or_its_words() -> None:
    words = [f"{letter}word" for rank, letter in enumerate("abcdefghijklmnopqrst") for _ in range(20 - rank)]
    frequent, shuffled, drawn = (
        choose_palette([(1.0, words)], 8, choice) for choice in ("frequent", "shuffled", "random")
    )
    assert set(shuffled) == set(frequent)
    assert shuffled != frequent
    assert len(set(drawn) - set(frequent)) > 1
    assert not set(drawn) & {"sword", "tword"}  # seen twice and once


def test_palette_needs_words() -> None:
    with pytest.raises(ConfigError, match="no content word"):
        choose_palette([], 5)
    with pytest.raises(ConfigError, match="frequent, shuffled, spread or random"):
        choose_palette([(1.0, WORDS)], 5, "best")
    with pytest.raises(ConfigError, match="no palette words"):
        filled("palette")


def filled(template: str, *palette: str) -> str:
    turn = Turn("Which?" if "{question}" in PromptFormat(template).text else "")
    return prompt_text(PromptFormat(template, palette), turn, first=True)


def test_templates_are_names_or_texts() -> None:
    assert filled("palette", "dog", "red") == "dog red\nCaption:"
    assert filled("Look: {palette} ->", "x") == "Look: x ->"
    turn = Turn("Which {caption}?", caption="a {question}")  # braces of a user stay what they are
    assert (
        prompt_text(PromptFormat("{question} Look: {caption}\nSo:"), turn, True)
        == "Which {caption}? Look: a {question}\nSo:"
    )
    assert filled("alpaca-caption") == TEMPLATES["alpaca-caption"]
    assert content_words("The DOG's bone") == ["dog", "bone"]


def test_prompt_and_answer_are_one_text(language_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_folder)
    for name in TEMPLATES:
        prompt = filled(name, "red", "square")
        before, after = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, prompt, " A red square.\n")
        assert after[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(before + after[:-1]).replace(prompt, "", 1).strip() == "A red square."


def test_a_prompt_of_one_token_is_refused(language_folder: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        prompt_ids(AutoTokenizer.from_pretrained(language_folder), ":")
