"""Samples to batches: decoding, augmentation, one of the captions, token ids and labels."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excitor_mm.data.images import load_image
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.stream import stable_hash
from excitor_mm.prompts import answer_ids, prompt_ids

IGNORE = -100  # label of a position without loss, torch's default


class Example(NamedTuple):
    """One sample, ready for collation."""

    image_id: int | str
    key: str
    prompt: list[int]
    answer: list[int]
    pixels: list[Tensor]
    """One float[3, S, S] for each encoder."""
    captions: tuple[str, ...]


class Batch(NamedTuple):
    """What the model takes, and who it is about."""

    image_ids: list[int | str]
    keys: list[str]
    captions: list[tuple[str, ...]]
    inputs: dict[str, Any]
    """Arguments of `ExcitorModel.forward`; see there."""


@dataclass(frozen=True)
class ExampleMaker:
    """The transform of a stream: a sample and its epoch to an example.

    Which caption is drawn and how the image is cropped depend on (seed, epoch, key) alone.
    """

    tokenizer: Any
    prompt: str
    image_transform: Callable[[Any], list[Tensor]]
    seed: int
    max_pixels: int
    draw_caption: bool
    """True: one of the captions by hash (training); False: the first (validation loss)."""

    def __call__(self, sample: Sample, epoch: int) -> Example:
        if not sample.captions:
            raise BadSample("no caption", f"{sample.shard}: sample {sample.key} has no caption to learn from.")
        if sample.image is None:
            raise BadSample("no image", f"{sample.shard}: sample {sample.key} has no image.")
        drawn = stable_hash(self.seed, epoch, sample.key)
        caption = sample.captions[random.Random(drawn).randrange(len(sample.captions)) if self.draw_caption else 0]
        image = load_image(sample.image, self.max_pixels)
        with torch.random.fork_rng(devices=[]):  # torchvision draws its crops from the global generator
            torch.manual_seed(drawn)
            pixels = self.image_transform(image)
        return Example(
            sample.image_id,
            sample.key,
            prompt_ids(self.tokenizer, self.prompt),
            answer_ids(self.tokenizer, self.prompt, caption),
            pixels,
            sample.captions,
        )


def collate(examples: list[Example], padding: int) -> Batch:
    """Examples to one batch, padded on the right (no generation follows)."""
    rows = [example.prompt + example.answer for example in examples]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), padding)
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
        labels[index, len(example.prompt) : len(row)] = torch.tensor(example.answer)
    return Batch(
        [example.image_id for example in examples],
        [example.key for example in examples],
        [example.captions for example in examples],
        {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "pixel_values": [torch.stack(group) for group in zip(*(e.pixels for e in examples), strict=True)],
            "image_mask": torch.ones(len(examples), dtype=torch.bool),
        },
    )
