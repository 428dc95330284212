"""How likely a language model finds texts: perplexity by blocks, and one-token answers after a shared prompt.

In: a model and token ids. Out: arrays of log-probabilities. What is switched off (`switches.py`) stays off.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from excitor_mm.llama import CACHE
from excitor_mm.model import ExcitorModel


@dataclass(frozen=True)
class TextScores:
    """A text cut into blocks of neighbouring tokens."""

    losses: NDArray[np.float64]
    """float[N], summed cross entropy of each block's tokens."""
    tokens: NDArray[np.int64]
    """int[N], scored tokens in each block."""
    greedy: NDArray[np.int64]
    """int[sum(tokens)], the likeliest token at each scored place."""


@torch.no_grad()
def score_text(
    model: ExcitorModel, ids: Sequence[int], visual: Tensor | None = None, window: int = 1024, block: int = 64
) -> TextScores:
    """Every token of a text but the first of each window, given the window before it.

    Args:
        model: whose language model reads.
        ids: tokens of the text.
        visual: float[1, L, 2 or 1, N, R], an image that it sees meanwhile.
        window: tokens read at a time.
        block: tokens of a block.
    """
    losses, greedy = [], []
    for start in range(0, len(ids), window):
        part = torch.tensor([ids[start : start + window]], device=model.device)
        logits = model.language(input_ids=part, visual_prompts=visual, use_cache=False).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, part[0, 1:], reduction="none").double())
        greedy.append(logits.argmax(dim=-1))
    pieces = [piece for loss in losses for piece in loss.split(block) if len(piece)]
    return TextScores(
        np.array([piece.sum().item() for piece in pieces]),
        np.array([len(piece) for piece in pieces]),
        torch.cat(greedy).cpu().numpy(),
    )


@torch.no_grad()
def score_next_token(
    model: ExcitorModel,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[int],
    visual: Tensor | None = None,
    batch_size: int = 8,
) -> Iterator[list[list[float]]]:
    """Log-probabilities of candidate tokens after each prompt; what all prompts begin with is read once.

    Args:
        model: whose language model reads.
        prompts: token ids; none is a part of another.
        candidates: token ids.
        visual: float[1, L, 2 or 1, N, R], an image that it sees meanwhile.
        batch_size: prompts at a time.

    Yields:
        A batch at a time, in order: for each prompt the log-probability of each candidate.
    """
    common = min(len(os.path.commonprefix([list(prompt) for prompt in prompts])), min(map(len, prompts)) - 1)  # type: ignore[misc]
    shared = DynamicCache(config=model.language.config)
    if common:
        head = torch.tensor([prompts[0][:common]], device=model.device)
        model.language.model(input_ids=head, visual_prompts=visual, use_cache=True, **{CACHE: shared})
    for start in range(0, len(prompts), batch_size):
        rests = [torch.tensor(prompt[common:]) for prompt in prompts[start : start + batch_size]]
        # padded on the right, where a causal model does not look
        ids = torch.nn.utils.rnn.pad_sequence(rests, batch_first=True).to(model.device)
        cache = copy.deepcopy(shared)
        if common:
            cache.batch_repeat_interleave(len(rests))
        hidden = model.language.model(
            input_ids=ids,
            visual_prompts=None if visual is None else visual.expand(len(rests), -1, -1, -1, -1),
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state
        last = hidden[range(len(rests)), [len(rest) - 1 for rest in rests]]
        scores = model.language.lm_head(last).float().log_softmax(dim=-1)
        yield scores[:, list(candidates)].tolist()
