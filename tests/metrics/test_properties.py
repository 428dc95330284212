"""What holds for captions of every kind: hypothesis makes them up, the real tokenizer and scorers run each time."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from excitor_mm.metrics.captions import CaptionScores, score_captions

TEXTS = st.lists(st.sampled_from("a dog's red U.S. bus-stop (two) men, and run! caf\u00e9 \u2028".split(" "))).map(
    " ".join
)
ITEMS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=2, max_size=6)
"""(caption, references) of each image."""
few = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])


def score(items: Iterable[tuple[int, tuple[str, list[str]]]]) -> CaptionScores:
    rows = dict(items)
    captions = {i: caption for i, (caption, _) in rows.items()}
    return score_captions(captions, {i: texts for i, (_, texts) in rows.items()}, ["BLEU", "ROUGE-L", "CIDEr"])


@few
@given(ITEMS, st.integers(0, 9))
def test_permuting_images_changes_nothing(items: list[tuple[str, list[str]]], seed: int) -> None:
    rows = list(enumerate(items))
    once, again = score(rows), score(random.Random(seed).sample(rows, len(rows)))
    assert again.scores == pytest.approx(once.scores)
    for metric, values in once.per_image.items():
        assert again.per_image[metric] == pytest.approx(values)


@few
@given(ITEMS, st.integers(0, 9))
def test_doubling_the_set_changes_nothing(items: list[tuple[str, list[str]]], seed: int) -> None:
    """For captions of phrases that some reference has: CIDEr weighs any other by the number of images alone."""
    chooser = random.Random(seed)
    known = [(chooser.choice(chooser.choice(items)[1]), texts) for _, texts in items]
    once, twice = score(enumerate(known)), score(enumerate(known * 2))
    assert (twice.images, twice.scores) == (2 * once.images, pytest.approx(once.scores, abs=1e-3))
    for metric, values in once.per_image.items():
        for i, value in values.items():
            assert twice.per_image[metric][i] == twice.per_image[metric][i + len(items)] == pytest.approx(value)


def test_doubling_the_set_lowers_the_cider_of_unknown_phrases() -> None:
    items = [("a dog and men", ["a dog runs"]), ("red bus stops here", ["a red bus"])]
    once, twice = score(enumerate(items)), score(enumerate(items * 2))
    assert 0 < twice.scores["CIDEr"] < 0.9 * once.scores["CIDEr"]


@few
@given(ITEMS, st.integers(0, 9))
def test_a_copied_reference_never_scores_below_its_shuffled_words(
    items: list[tuple[str, list[str]]], seed: int
) -> None:
    """With one reference an image: where several disagree, the words of one may stand in the order of another."""
    single = [texts[0] for _, texts in items]
    mixed = [" ".join(random.Random(seed).sample(text.split(" "), len(text.split(" ")))) for text in single]
    copied = score((n, (text, [text])) for n, text in enumerate(single))
    shuffled = score((n, (text, [single[n]])) for n, text in enumerate(mixed))
    for metric, values in copied.per_image.items():
        assert all(value >= shuffled.per_image[metric][n] - 1e-6 for n, value in values.items()), metric
