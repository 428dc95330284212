"""Forward, backward and AdamW on one batch of real captions.

train-step: of every method. answers: of all captions of a picture, behind one prompt and in rows of their own.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import yaml
from baselines import build_baseline
from torch import Tensor

from excitor_mm.branches import share_prompt
from excitor_mm.config import RunConfig, from_dict
from excitor_mm.data.images import MAX_PIXELS
from excitor_mm.data.pipeline import IGNORE, Batch, ExampleMaker, collate
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.language import choose_device
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from suites.measure import Comparison, Side
from suites.models import chosen

OTHERS = ("llama-adapter", "clipcap", "blip2", "llava", "lora")


def train_step(options: Namespace) -> list[Comparison]:
    """The batch's visual tokens are encoded beforehand for all sides but one."""
    config, ours = _build(options)
    place = ours.device
    whole = read_batch(ours, options.images, options.batch_size).inputs
    tokens = ours.tower.encode([pixels.to(place) for pixels in whole["pixel_values"]])
    cached = {**whole, "pixel_values": tokens}
    sides = {"excitor, cached tokens": _step(ours, cached), "excitor with its encoders": _step(ours, whole)}
    for name in chosen(options, *OTHERS):
        other = build_baseline(name, config, ours.config.prompts).eval().to(place)
        sides[name] = _step(other, cached)
        if name == "lora":
            half = build_baseline(name, config, ours.config.prompts).eval().to(place, other.language.dtype)
            sides["lora, in the model's precision"] = _step(half, cached)
    bare = build_baseline("bare", config, ours.config.prompts).eval().to(place)
    sides["bare, forward and backward to the same depth"] = _bare(bare, cached, len(ours.language.excitors()))
    facts = {
        "batch": options.batch_size,
        "tokens": whole["labels"].numel(),
        "of them answer": int((whole["labels"] != IGNORE).sum()),
        "image tokens": sum(part.shape[1] for part in tokens),
        "TFLOP": round(flops(ours, whole["labels"].numel()) / 1e12, 3),
        "dtype": str(ours.language.dtype).removeprefix("torch."),
        "trainables": f"{sum(p.numel() for p in ours.trainables().values()):,}",
    }
    return [Comparison("train-step", sides, 1, "step", facts=facts)]


def answers(options: Namespace) -> list[Comparison]:
    """`--count` pictures, whose visual tokens are encoded beforehand for both sides."""
    _, model = _build(options)
    padding = model.processor.tokenizer.pad_token_id
    groups = [
        [maker(dataclasses.replace(sample, captions=(caption,)), 0) for caption in sample.captions]
        for maker, sample in _samples(model, options.images, options.count)
    ]
    shared = collate([group[0]._replace(text=share_prompt([e.text for e in group])) for group in groups], padding)
    apart = collate([example for group in groups for example in group], padding)
    pixels = [part.to(model.device) for part in shared.inputs["pixel_values"]]
    shown = {"pixel_values": model.tower.encode(pixels), "image_mask": shared.inputs["image_mask"]}
    rows = torch.tensor([row for row, group in enumerate(groups) for _ in group])
    sides = {
        "behind one prompt": _step(model, {**shared.inputs, **shown}),
        "in rows of their own": _step(model, {**apart.inputs, **shown, "image_rows": rows}),
    }
    facts = {
        "pictures": len(groups),
        "captions": len(rows),
        "tokens": shared.inputs["labels"].numel(),
        "tokens in rows of their own": apart.inputs["labels"].numel(),
        "dtype": str(model.language.dtype).removeprefix("torch."),
    }
    return [Comparison("answers", sides, 1, "step", facts=facts)]


def _build(options: Namespace) -> tuple[RunConfig, ExcitorModel]:
    values = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    values["data"] |= {"train": options.images, "validation": None}  # the palette comes from the same captions
    config = from_dict(RunConfig, values)
    torch.manual_seed(0)
    return config, build_for_training(config).to(choose_device("auto"))


def flops(model: ExcitorModel, tokens: int) -> float:
    """Of the frozen layers' products: 2 a weight and token forward, and as many backward through excited layers.

    Attention scores, the head on the few labelled tokens and the blocks themselves are left out.
    """
    layers = model.language.model.layers
    each = sum(p.numel() for p in layers[0].parameters() if not p.requires_grad and p.ndim == 2)
    return 2.0 * each * tokens * (len(layers) + len(model.language.excitors()))


def read_batch(model: ExcitorModel, shards: str, count: int) -> Batch:
    """The first `count` samples with their first captions."""
    examples = [maker(sample, 0) for maker, sample in _samples(model, shards, count)]
    return collate(examples, model.processor.tokenizer.pad_token_id)


def _samples(model: ExcitorModel, shards: str, count: int) -> Iterator[tuple[ExampleMaker, Sample]]:
    tokenizer, form = model.processor.tokenizer, model.task_format("caption")
    maker = ExampleMaker(tokenizer, form, model.tower.transform(), 0, MAX_PIXELS, draw=False)
    samples = (sample for shard in list_shards(shards) for sample in read_shard(shard, lambda _: None))
    return ((maker, sample) for sample in islice(samples, count))


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
