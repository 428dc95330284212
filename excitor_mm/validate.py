"""Validation during training: loss and CIDEr of greedy captions, over all ranks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.data.pipeline import ExampleMaker, collate
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.metrics.captions import score_captions
from excitor_mm.model import ExcitorModel


@torch.no_grad()
def validate(model: ExcitorModel, config: RunConfig, accelerator: Accelerator) -> dict[str, float]:
    """Score the validation shards.

    Returns:
        validation_loss, per answer token of each sample's first caption; cider, x100, greedy.
    """
    data, tokenizer = config.data, model.processor.tokenizer
    maker = ExampleMaker(
        tokenizer, model.processor.prompt, model.tower.transform(), config.train.seed, data.max_pixels, False
    )
    assert data.validation is not None
    stream = EvaluationStream(
        list_shards(data.validation),
        maker,
        functools.partial(collate, padding=tokenizer.pad_token_id),
        batch_size=max(1, config.train.batch_size // (accelerator.num_processes * config.train.accumulation)),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    greedy = DecodingConfig(beams=1, max_new_tokens=config.decoding.max_new_tokens)
    summed, count = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    rows: list[tuple[Any, str, tuple[str, ...]]] = []
    for item in read_stream(stream, data.workers):
        if item.batch is None:
            continue
        inputs = item.batch.inputs
        loss, tokens = model(**inputs)
        summed, count = summed + loss, count + tokens
        prompts = model.processor.collate([model.processor.prompt] * len(item.batch.keys), [None])
        prompts |= {"pixel_values": inputs["pixel_values"], "image_mask": inputs["image_mask"]}
        captions = model.processor.batch_decode(model.generate(**prompts, decoding=greedy))
        rows += zip(item.batch.image_ids, captions, item.batch.captions, strict=True)
    rows = gather_object(rows)
    summed, count = accelerator.reduce(summed, reduction="sum"), accelerator.reduce(count, reduction="sum")
    predictions = {image_id: caption for image_id, caption, _ in rows}
    references = {image_id: list(truth) for image_id, _, truth in rows}
    scores = score_captions(predictions, references, ["CIDEr"]).scores
    return {"validation_loss": (summed / count).item(), "cider": scores["CIDEr"]}
