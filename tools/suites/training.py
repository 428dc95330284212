"""train-step: forward, backward and AdamW of every method on one batch of real captions."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
import yaml
from baselines import build_baseline
from torch import Tensor

from excitor_mm.config import RunConfig, from_dict
from excitor_mm.data.pipeline import IGNORE
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.model import ExcitorModel
from excitor_mm.prompts import answer_ids, prompt_ids
from excitor_mm.train import build_for_training
from suites.measure import Comparison, Side

OTHERS = ("llama-adapter", "clipcap", "llava", "lora")


def train_step(options: Namespace) -> list[Comparison]:
    """The batch's visual tokens are encoded beforehand for all sides but one."""
    config = from_dict(RunConfig, yaml.safe_load(options.config.read_text(encoding="utf-8")) | _data(options))
    torch.manual_seed(0)
    ours = build_for_training(config)
    whole = read_batch(ours, options.images or config.data.train, options.batch_size)
    tokens = ours.tower.encode(whole["pixel_values"])
    cached = {**whole, "pixel_values": tokens}
    sides = {"excitor, cached tokens": _step(ours, cached), "excitor with its encoders": _step(ours, whole)}
    for name in OTHERS:
        other = build_baseline(name, config, ours.config.palette).eval()
        sides[name] = _step(other, cached)
        if name == "lora":
            half = build_baseline(name, config, ours.config.palette).eval().to(other.language.dtype)
            sides["lora, in the model's precision"] = _step(half, cached)
    bare = build_baseline("bare", config, ours.config.palette).eval()
    sides["bare, forward and backward to the same depth"] = _bare(bare, cached, len(ours.language.excitors()))
    facts = {
        "batch": options.batch_size,
        "tokens": whole["labels"].numel(),
        "of them answer": int((whole["labels"] != IGNORE).sum()),
        "image tokens": sum(part.shape[1] for part in tokens),
        "dtype": config.language.dtype,
        "trainables": f"{sum(p.numel() for p in ours.trainables().values()):,}",
    }
    return [Comparison("train-step", sides, 1, "step", facts=facts)]


def _data(options: Namespace) -> dict[str, Any]:
    """The palette comes from the same captions as the batch."""
    return {"data": {"train": options.images}} if options.images else {}


def read_batch(model: ExcitorModel, shards: str, count: int) -> dict[str, Any]:
    """The arguments of `ExcitorModel.forward` for the first `count` samples and their first captions."""
    tokenizer, prompt = model.processor.tokenizer, model.processor.prompt
    before = prompt_ids(tokenizer, prompt)
    samples = (
        s for shard in list_shards(shards) for s in read_shard(shard, lambda _: None) if s.captions and s.image
    )
    chosen = list(islice(samples, count))
    rows = [answer_ids(tokenizer, prompt, sample.captions[0]) for sample in chosen]
    length = max(map(len, rows))
    ids = torch.tensor([before + row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    lengths = torch.tensor([len(before) + len(row) for row in rows])
    places = torch.arange(ids.shape[1])
    mask = places < lengths[:, None]
    pixels = [model.processor.pixels(sample.image) for sample in chosen if sample.image]
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask | (places < len(before)), IGNORE),
        "pixel_values": [torch.stack(group) for group in zip(*pixels, strict=True)],
        "image_mask": torch.ones(len(chosen), dtype=torch.bool),
    }


def _step(model: ExcitorModel, batch: Mapping[str, Any]) -> Side:
    parameters = list(model.trainables().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        loss, count = model(**batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _bare(model: ExcitorModel, batch: Mapping[str, Any], depth: int) -> Side:
    """The hidden states that enter the topmost `depth` layers require grad, and nothing else does."""

    def enter(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])

    model.language.model.layers[-depth].register_forward_pre_hook(enter)

    def step() -> None:
        loss, count = model(**batch)
        (loss / count).backward()

    return step
