"""The palette: words of the training answers for the prompt.

An Excitor moves attention between the words of the prompt but never adds values of its own, so the prompt's words
are what it paints with. In: the words of each source, as often as they occur. Out: the chosen ones.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable

from excitor_mm.errors import ConfigError

FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each other another it its he his him she her they their them "
    "there here who which what is are was be been being am has have had do does as at by for from in into of "
    "off on onto out over to up down with while and or but so than then very s t one near next top around "
    "through under behind along across between about against not no".split()
)
"""English words that name nothing in a picture; never in the palette."""


def content_words(caption: str) -> list[str]:
    """Lower-case words of a caption without function words."""
    return [word for word in re.findall(r"[a-z]+", caption.lower()) if word not in FUNCTION_WORDS]


def choose_palette(
    sources: Iterable[tuple[float, Iterable[str]]], size: int, choice: str = "frequent"
) -> tuple[str, ...]:
    """Words for the palette prompt, the most frequent first; equal ones in alphabetical order.

    How frequent a word is, is its share of each source's words times the weight of the source: a large source that
    training seldom takes does not crowd out the words of the others.

    Args:
        sources: of the training answers: weight, and the words, each as often as it occurs; see `content_words`.
        size: number of words; fewer when there are fewer.
        choice: "frequent"; "shuffled": the same words in another order, always the same one; "spread": as many words,
            evenly spaced over the frequency list of all words seen at least three times; "random": drawn from that
            list, always the same ones.

    Raises:
        ConfigError: an unknown choice, or no word.
    """
    counts: Counter[str] = Counter()
    shares: dict[str, float] = {}
    for weight, words in sources:
        found = Counter(words)
        counts += found
        total = found.total()
        for word, count in found.items():
            shares[word] = shares.get(word, 0.0) + weight * count / total
    ranked = sorted(shares, key=lambda word: (-shares[word], word))
    if not ranked:
        raise ConfigError("The training answers hold no content word: a palette prompt needs some.")
    if choice == "frequent":
        return tuple(ranked[:size])
    if choice == "shuffled":
        return tuple(random.Random(0).sample(ranked[:size], len(ranked[:size])))
    usual = [word for word in ranked if counts[word] >= 3] or ranked
    if choice == "random":
        return tuple(random.Random(0).sample(usual, min(size, len(usual))))
    if choice == "spread":
        step = max(1.0, len(usual) / size)
        return tuple(usual[int(index * step)] for index in range(min(size, len(usual))))
    raise ConfigError(f"prompt.palette_choice is {choice!r}: choose frequent, shuffled, spread or random.")
