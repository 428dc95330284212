"""`train --dry-run`: what a run will do, and everything that would fail late, before it starts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from excitor_mm.checkpoint import check_folder
from excitor_mm.config import RunConfig, SourceConfig
from excitor_mm.data.check import format_plan, plan_reading
from excitor_mm.data.images import MAX_PIXELS
from excitor_mm.data.pipeline import ExampleMaker
from excitor_mm.data.samples import BadSample
from excitor_mm.data.shards import expected_samples, list_shards, read_shard
from excitor_mm.errors import DataError
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.train import check_run


def preflight(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> str:
    """Check Java, shards, frozen parts and the run folder; describe the plan.

    Returns:
        A few lines for the terminal.

    Raises:
        ConfigError, DataError, DependencyError: what the run itself would have died of.
    """
    settings, data = config.train, config.data
    check_run(config)
    check_folder(Path(settings.output), config, resume, overwrite)
    model = build_for_training(config)
    lines = [f"trainables       {sum(p.numel() for p in model.trainables().values()):,}"]
    lines += [f"stage            {model.config.training['stage']}"]
    longest = 0
    total = sum(source.weight for source in config.training_sources())
    for source in config.training_sources():
        shards, samples = list_shards(source.shards), expected_samples(source.shards)
        share = source.weight / total
        epoch = f"{samples / settings.batch_size / share:.1f}" if samples else "unknown (no index.json)"
        text, length = _first_example(model, source)
        longest = max(longest, length)
        lines += [
            f"source           {source.task}: {samples or 'unknown'} samples in {len(shards)} shards",
            f"steps per epoch  {epoch}; {settings.steps} steps in all",
            f"first example    {length} tokens: {text[:300]!r}",
        ]
        plan = plan_reading(len(shards), samples or 0, max(1, data.workers), settings.batch_size, data.lanes)
        lines.append(f"one process      {format_plan(plan)}")
    per_forward = settings.batch_size // settings.accumulation
    if settings.stage == "scst":
        per_forward *= settings.scst_samples
    lines += [
        f"memory           about {memory_estimate(model, per_forward, longest) / 2**30:.1f} GiB",
        f"decoding         {config.decoding}",
        f"output           {settings.output}",
    ]
    return "\n".join(lines)


def _first_example(model: ExcitorModel, source: SourceConfig) -> tuple[str, int]:
    """The text of a source's first usable example, as the language model reads it, and its length in tokens."""
    tokenizer = model.processor.tokenizer
    maker = ExampleMaker(tokenizer, model.task_format(source.task), lambda image: [], 0, MAX_PIXELS, draw=False)
    for shard in list_shards(source.shards):
        for sample in read_shard(shard, lambda _: None):
            with contextlib.suppress(BadSample):
                ids = maker(sample, 0).text.ids
                return tokenizer.decode(ids), len(ids)
    raise DataError(f"{source.shards} holds no sample for the task {source.task}: run `excitor-mm shards check`.")


def memory_estimate(model: ExcitorModel, batch: int, length: int) -> float:
    """Bytes: weights, gradients and AdamW's two moments, and the activations that the backward pass keeps.

    A transformer layer keeps about 34 C bytes a token in half precision (Korthikanti et al., 2022, without
    the attention scores, which sdpa does not keep).
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trainable = sum(p.numel() for p in model.trainables().values())
    config = model.language.config
    bytes_per_value = torch.finfo(model.language.dtype).bits // 8
    layers = config.num_hidden_layers if model.config.lora.rank else len(model.language.excitors())
    kept = 17 * bytes_per_value * config.hidden_size * batch * length * layers
    return weights + 12 * trainable + kept
