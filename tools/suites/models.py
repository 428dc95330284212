"""The sides' models: ours from an adapter, the others on the same frozen parts, in the same precision."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

import torch
from baselines import Baseline, build_baseline
from torch import Tensor

from excitor_mm.adapter import AdapterConfig
from excitor_mm.config import LanguageConfig, RunConfig
from excitor_mm.language import choose_device
from excitor_mm.model import ExcitorModel


def chosen(options: Namespace, *names: str) -> list[str]:
    """Those that `--sides` names, without it all; "bare" always, because others are divided by it."""
    return [name for name in names if not options.sides or name in (*options.sides, "bare")]


def load_ours(adapter: Path, dtype: str) -> ExcitorModel:
    """The adapter's model."""
    return ExcitorModel.from_pretrained(adapter, dtype=dtype)


def load_other(name: str, config: AdapterConfig, dtype: str) -> Baseline:
    """A baseline on the frozen parts of an adapter; weights that would have to be learnt are random, which costs the
    same.
    """
    place = choose_device("auto")
    if dtype == "auto":  # as `ExcitorModel.from_pretrained`
        dtype = "float32" if place.type == "cpu" else config.language.dtype
    parts = dataclasses.asdict(config.language) | {"dtype": dtype}
    run = RunConfig(language=LanguageConfig(**parts), vision=config.vision, excitor=config.excitor)
    torch.manual_seed(0)
    return build_baseline(name, run, config.prompts).eval().to(place)


def random_tokens(model: ExcitorModel, batch: int, count: int) -> list[Tensor]:
    """Visual tokens of `batch` pictures as `VisionTower.encode` gives them: `count` for each picture in all.

    Their number and width decide the cost, their values do not.
    """
    sizes = [count // len(model.tower.encoders)] * len(model.tower.encoders)
    sizes[0] += count - sum(sizes)
    return [torch.randn(batch, n, encoder.width) for n, encoder in zip(sizes, model.tower.encoders, strict=True)]


def text(model: ExcitorModel, batch: int, length: int | None = None) -> dict[str, Tensor]:
    """The model's own prompt `batch` times, or the first `length` tokens of it repeated."""
    ids = torch.tensor(model.processor.caption_ids())
    if length is not None:
        ids = ids.repeat(length // len(ids) + 1)[:length]
    ids = ids.expand(batch, -1).contiguous()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
