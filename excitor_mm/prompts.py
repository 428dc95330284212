"""Prompt templates, the palette, and the line between prompt and answer.

One pair of functions turns text into token ids for training, captioning and evaluation alike, so the three
cannot drift apart: `prompt_ids` before the answer, `answer_ids` after it.

The palette: an Excitor moves attention between the words of the prompt but never adds values of its own, so
the prompt's words are what it paints with. `choose_palette` picks them from the training captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from excitor_mm.errors import ConfigError

PALETTE = "{palette}"

TEMPLATES = {
    "palette": "{palette}\nCaption:",
    "caption": "Caption:",
    "alpaca-caption": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nGenerate caption of this image\n\n### Response:"
    ),
}
"""Named templates. The Alpaca wording is that of the LLaMA-Adapter recipe the paper builds on."""

FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each other another it its he his him she her they their them "
    "there here who which what is are was be been being am has have had do does as at by for from in into of "
    "off on onto out over to up down with while and or but so than then very s t one near next top around "
    "through under behind along across between about against not no".split()
)
"""English words that name nothing in a picture; never in the palette."""


class Tokenizer(Protocol):
    """What this file needs of a transformers tokenizer."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...


def content_words(caption: str) -> list[str]:
    """Lower-case words of a caption without function words."""
    return [word for word in re.findall(r"[a-z]+", caption.lower()) if word not in FUNCTION_WORDS]


def choose_palette(captions: Iterable[str], size: int, choice: str = "frequent") -> tuple[str, ...]:
    """Words for the palette prompt, the most frequent first; equal counts in alphabetical order.

    Args:
        captions: the training captions.
        size: number of words; fewer when the captions hold fewer.
        choice: "frequent", or "spread": as many words, evenly spaced over the frequency list of all words
            seen at least three times.

    Raises:
        ConfigError: an unknown choice, or captions without a content word.
    """
    counts = Counter(word for caption in captions for word in content_words(caption))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if not ranked:
        raise ConfigError("The training captions hold no content word: a palette prompt needs some.")
    if choice == "frequent":
        return tuple(ranked[:size])
    if choice == "spread":
        usual = [word for word in ranked if counts[word] >= 3] or ranked
        step = max(1.0, len(usual) / size)
        return tuple(usual[int(index * step)] for index in range(min(size, len(usual))))
    raise ConfigError(f"prompt.palette_choice is {choice!r}: choose frequent or spread.")


def fill_template(template: str, palette: Iterable[str] = ()) -> str:
    """The prompt text: a named template or the text itself, with `{palette}` filled.

    Raises:
        ConfigError: `{palette}` without words.
    """
    text = TEMPLATES.get(template, template)
    if PALETTE not in text:
        return text
    words = " ".join(palette)
    if not words:
        raise ConfigError(f"The prompt template {template!r} holds {PALETTE}, but no palette words are given.")
    return text.replace(PALETTE, words)


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the prompt, with the tokenizer's own opening token.

    Raises:
        ConfigError: fewer than two tokens. The first position sees only itself, so an Excitor cannot
            influence it and a one-token prompt would make the first word blind.
    """
    ids = tokenizer.encode(text, add_special_tokens=True)
    if len(ids) < 2:
        raise ConfigError(f"The prompt {text!r} has {len(ids)} token(s): at least 2 are needed.")
    return ids


def answer_ids(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """Token ids of an answer as they follow `prompt`, closed by the end-of-sequence token.

    Both are encoded together, because byte-level and sentencepiece tokenizers treat a leading space
    differently.

    Raises:
        ConfigError: the last token of the prompt would change with the answer, or no end token exists.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("The tokenizer has no end-of-sequence token: set one in its folder.")
    before = prompt_ids(tokenizer, prompt)
    ids = tokenizer.encode(prompt + " " + " ".join(answer.split()), add_special_tokens=True)
    if ids[: len(before)] != before:
        raise ConfigError(
            f"The prompt {prompt!r} and the answer {answer!r} share a token: end the template with a colon "
            "or a line break."
        )
    return [*ids[len(before) :], tokenizer.eos_token_id]
