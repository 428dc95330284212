"""Rewards: pycocoevalcap's CIDEr with word weights that stay, and a price on not ending."""

from __future__ import annotations

import pytest
from pycocoevalcap.cider.cider import Cider

from excitor_mm.errors import DataError
from excitor_mm.metrics.ptb import ptb_tokenize, words
from excitor_mm.metrics.reward import END, CiderReward, closed
from tests.metrics.test_captions import PREDICTIONS, REFERENCES


@pytest.fixture(scope="module")
def reward() -> CiderReward:
    return CiderReward([closed(text) for text in texts] for texts in REFERENCES.values())


def test_rewards_are_pycocoevalcaps_cider_of_the_same_corpus() -> None:
    ids = list(REFERENCES)
    expected = Cider().compute_score(REFERENCES, {i: [PREDICTIONS[i]] for i in ids})[1]
    found = CiderReward(REFERENCES.values()).score([PREDICTIONS[i] for i in ids], [REFERENCES[i] for i in ids])
    assert found == pytest.approx(list(expected), abs=1e-6)
    assert max(found) > 1


def test_a_reward_does_not_depend_on_what_is_scored_with_it(reward: CiderReward) -> None:
    captions, references = [closed(text) for text in PREDICTIONS.values()], list(REFERENCES.values())
    known = len(reward.document_frequency)
    together = reward.score(captions, references)
    assert together == [reward.score([c], [r])[0] for c, r in zip(captions, references, strict=True)]
    assert reward.score(["zebra zebra", ""], references[:2]) == [0.0, 0.0]
    assert len(reward.document_frequency) == known  # what is drawn leaves nothing behind


def test_a_caption_that_does_not_end_gets_less(reward: CiderReward) -> None:
    references = [closed(text) for text in REFERENCES[0]]
    whole, cut = closed(REFERENCES[0][0]), closed(REFERENCES[0][0], finished=False)
    assert whole == f"{cut} {END}"
    assert reward.score([cut], [references])[0] < reward.score([whole], [references])[0]
    hanging = closed(REFERENCES[0][0] + " with a", finished=False)
    assert reward.score([hanging], [references])[0] < reward.score([cut], [references])[0]


def test_captions_cannot_hold_the_end_word() -> None:
    assert END not in closed(f"a dog {END} runs", finished=False).split()


def test_a_corpus_of_one_image_gives_no_rewards() -> None:
    with pytest.raises(DataError, match="of 1 training"):
        CiderReward([["a dog"]])


def test_words_are_those_of_the_tokenizer() -> None:
    captions = [
        "A man's dog isn't in the T-shirt.",
        'Two people, "happy" ones; they\'re at 10:30!',
        "1,000 people & 3.5 apples - 50% off",
        "Caf\u00e9 in Z\u00fcrich -- open?",
        "A black/white cat (sleeping)",
        "We'll eat, they'd sleep, I've seen: it's 'ok'",
    ]
    expected = ptb_tokenize({0: captions})[0]
    brackets = ("-lrb-", "-rrb-")  # pycocoevalcap drops them only in capitals, which lower-casing has taken away
    assert [words(text) for text in captions] == [[w for w in text.split() if w not in brackets] for text in expected]
