"""CIDEr as the reward of drawn captions: pycocoevalcap's scorer with fixed word weights, in this process.

It is the evaluation's CIDEr but for three things. Document frequencies are those of the training captions, not of the
set at hand, so a caption's reward does not depend on its batch. Captions are split by `ptb.words` instead of Java.
And an `END` word closes references and finished captions: without it a caption that stops in "with a" scores no less
than one that ends, and the model learns to stop there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from excitor_mm.errors import DataError
from excitor_mm.metrics.ptb import words

END = "<end>"
"""No word of a caption: `words` never gives it."""


def closed(caption: str, finished: bool = True) -> str:
    """A caption as `CiderReward` takes it: words joined by spaces, and `END` where it is finished."""
    return " ".join([*words(caption), *([END] if finished else [])])


class CiderReward(CiderScorer):  # type: ignore[misc]
    """Scores captions against their references; see `closed` for the form of both.

    Args:
        corpus: the references of each training image.

    Raises:
        DataError: fewer than two images, among which no word is rare.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        super().__init__()
        self.document_frequency: Counter[tuple[str, ...]] = (
            Counter()
        )  # unlike a defaultdict it does not grow when it is asked
        self.images = 0
        for references in corpus:
            self.crefs = [cook_refs(references)]
            self.compute_doc_freq()
            self.images += 1
        if self.images < 2:
            raise DataError(f"There are captions of {self.images} training image(s): CIDEr rewards need at least 2.")
        # What occurs with one image weighs as much as what occurs with none: forgetting it saves most of the memory.
        self.document_frequency = Counter({ngram: n for ngram, n in self.document_frequency.items() if n > 1})

    @property
    def ref_len(self) -> float:
        """Logarithm of the number of training images."""
        return math.log(self.images)

    @ref_len.setter
    def ref_len(self, value: float | None) -> None:
        """Upstream sets it to the number of captions that are scored together."""

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """CIDEr (x1, at most 10) of each caption against its own references."""
        self.ctest, self.crefs = [cook_test(text) for text in captions], [cook_refs(texts) for texts in references]
        return [float(value) for value in self.compute_cider()]
