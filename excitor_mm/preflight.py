"""`train --dry-run`: what a run will do, and everything that would fail late, before it starts."""

from __future__ import annotations

from pathlib import Path

import torch

from excitor_mm.checkpoint import check_folder
from excitor_mm.config import RunConfig
from excitor_mm.data.shards import expected_samples, list_shards
from excitor_mm.data.stream import reader_slice
from excitor_mm.model import ExcitorModel
from excitor_mm.prompts import prompt_ids
from excitor_mm.train import build_for_training, check_run


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
    shards = list_shards(data.train)
    model = build_for_training(config)
    samples = expected_samples(data.train)
    steps = f"{samples / settings.batch_size:.1f}" if samples else "unknown (no index.json)"
    per_forward = settings.batch_size // settings.accumulation
    prompt = len(prompt_ids(model.processor.tokenizer, model.processor.prompt))
    lines = [
        f"trainables       {sum(p.numel() for p in model.trainables().values()):,}",
        f"samples          {samples or 'unknown'} in {len(shards)} shards",
        f"steps per epoch  {steps}; {settings.steps} steps in all",
        f"prompt           {prompt} tokens: {model.processor.prompt[:200]!r}",
        f"memory           about {memory_estimate(model, per_forward, prompt + 20) / 2**30:.1f} GiB",
        f"decoding         {config.decoding}",
        f"output           {settings.output}",
    ]
    for worker in range(max(1, data.workers)):
        parts = reader_slice(shards, worker, max(1, data.workers))
        names = ", ".join(f"{Path(shard).name}" + (f" every {step}." if step > 1 else "") for shard, _, step in parts)
        lines.append(f"worker {worker} (rank 0)  {names}")
    return "\n".join(lines)


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
