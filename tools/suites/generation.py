"""prefill, decode, generate: what an image costs a language model that writes."""

from __future__ import annotations

import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from excitor_mm.config import DecodingConfig
from excitor_mm.model import ExcitorModel
from suites.measure import Comparison, finish
from suites.models import chosen, load_other, load_ours, random_tokens, text

DECODE_BATCHES = (1, 32)


def seconds(model: ExcitorModel, words: dict[str, Tensor], tokens: list[Tensor], new: int, **more: Any) -> float:
    """Time of writing `new` tokens greedily for every sample, from visual tokens and prompt."""
    decoding = DecodingConfig(beams=1, max_new_tokens=new, min_new_tokens=new)
    started = time.perf_counter()
    model.generate(**words, pixel_values=tokens, decoding=decoding, **more)
    finish()
    return time.perf_counter() - started


def prefill(options: Namespace) -> list[Comparison]:
    """Prompt to first token."""
    models = _models(options, "llama-adapter", "clipcap", "blip2", "git", "llava", "bare")
    ours = models["excitor"]
    words, tokens = text(ours, options.batch_size), random_tokens(ours, options.batch_size, options.image_tokens)

    facts = _facts(options, options.batch_size, words)
    sides = {name: partial(seconds, model, words, tokens, 1) for name, model in models.items()}
    return [Comparison("prefill", sides, options.batch_size, "image", facts=facts)]


class _Clock(StoppingCriteria):
    """Notes when each token was there; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        finish()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode(options: Namespace) -> list[Comparison]:
    """Steps of greedy decoding: from the first new token to the last."""
    models = _models(options, "llama-adapter", "bare")
    steps = options.new_tokens - 1
    comparisons = []
    for batch in DECODE_BATCHES:
        words = text(models["excitor"], batch)
        tokens = random_tokens(models["excitor"], batch, options.image_tokens)
        sides = {name: partial(_steps, model, words, tokens, options.new_tokens) for name, model in models.items()}
        facts = _facts(options, batch, words)
        comparisons.append(Comparison(f"decode, batch {batch}", sides, steps, "step", facts=facts))
    return comparisons


def _steps(model: ExcitorModel, words: dict[str, Tensor], tokens: list[Tensor], new: int) -> float:
    clock = _Clock()
    seconds(model, words, tokens, new, stopping_criteria=StoppingCriteriaList([clock]))
    return clock.times[-1] - clock.times[0]


def generate(options: Namespace) -> list[Comparison]:
    """Prefill and decode together, from visual tokens to the last new token."""
    models = _models(options, "bare", "llama-adapter", "clipcap", "blip2", "git", "llava")
    batch = options.batch_size
    words, tokens = text(models["excitor"], batch), random_tokens(models["excitor"], batch, options.image_tokens)

    sides = {name: partial(seconds, model, words, tokens, options.new_tokens) for name, model in models.items()}
    return [Comparison("generate", sides, batch, "image", facts=_facts(options, batch, words))]


def _models(options: Namespace, *others: str) -> dict[str, ExcitorModel]:
    ours = load_ours(options.adapter, options.dtype)
    names = chosen(options, *others)
    return {"excitor": ours} | {name: load_other(name, ours.config, options.dtype) for name in names}


def _facts(options: Namespace, batch: int, words: dict[str, Tensor]) -> dict[str, object]:
    return {
        "batch": batch,
        "prompt tokens": words["input_ids"].shape[1],
        "image tokens": options.image_tokens,
        "new tokens": options.new_tokens,
        "dtype": options.dtype,
    }
