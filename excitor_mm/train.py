"""Train Excitor blocks on shards: configuration in, run folder out.

    <output>/config.yaml       the resolved configuration
    <output>/metrics.jsonl     one line every log_every steps, and one for each validation
    <output>/best/, last/      adapter folders: best validation score, and the latest
    <output>/checkpoint.pt     what `--resume` needs: trainables, optimizer, position

The loop is read from top to bottom in `train`. The loss of a step is divided once by the number of answer
tokens over all ranks and accumulated batches, so 1 x 8 and 4 x 2 give the same gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from excitor_mm.batches import training_batches
from excitor_mm.checkpoint import RunState, check_folder, claim_folder
from excitor_mm.config import RunConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.pipeline import IGNORE, Batch
from excitor_mm.data.shards import list_shards
from excitor_mm.data.tasks import IMAGE_TASKS
from excitor_mm.errors import ConfigError, DataError, DependencyError
from excitor_mm.language import choose_device
from excitor_mm.lora import lora_dropout
from excitor_mm.metrics.java import find_java
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.validate import SCORES, validate


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Run a training to its end.

    Args:
        config: of the run.
        resume: go on from the run folder's checkpoint.
        overwrite: delete an older run of the same name.

    Returns:
        The best adapter folder.

    Raises:
        ConfigError, DataError, DependencyError: before the first step wherever possible.
    """
    settings = config.train
    output = Path(settings.output)
    accelerator = make_accelerator(config)
    check_run(config, accelerator.num_processes)
    if accelerator.is_main_process:
        check_folder(output, config, resume, overwrite)
    torch.manual_seed(settings.seed)
    model = build_for_training(config).to(accelerator.device)
    if accelerator.is_main_process:  # last of all that can fail, because it may delete an older run
        claim_folder(output, config, resume, overwrite)
    accelerator.wait_for_everyone()

    wrapped = accelerator.prepare(model)
    optimizer = make_optimizer(model, config)
    state = RunState(model, optimizer, output, [SCORES[source.task][1] for source in config.validation_sources()])
    if resume:
        state.load()
        if accelerator.is_main_process:
            state.forget_later_metrics()
    batches = training_batches(config, model, accelerator, start=state.step * settings.accumulation)
    if accelerator.is_main_process:
        log(f"{sum(p.numel() for p in model.trainables().values()):,} trainable parameters on {model.device}")
        accelerator.init_trackers("excitor-mm", {"config": json.dumps(dataclasses.asdict(config))})

    frozen = frozen_checksums(model)
    started, images, tokens, shortened = time.monotonic(), 0, 0, 0
    with Progress("training", settings.steps, "steps", done=state.step) as bar:
        ended = state.step >= settings.steps or state.out_of_patience(settings.patience)
        while not ended:
            rate = set_learning_rate(optimizer, state.step, config)
            window = [next(batches) for _ in range(settings.accumulation)]
            loss, norm, count = train_step(wrapped, optimizer, window, accelerator, config)
            state.step += 1
            shortened += sum(batch.shortened for batch in window)
            images, tokens = images + settings.batch_size, tokens + count
            seconds = time.monotonic() - started
            speed = {"images_per_s": images / seconds, "tokens_per_s": tokens / seconds}
            shown = f"{speed['images_per_s']:.1f} images/s, {speed['tokens_per_s']:.0f} tokens/s"
            bar.advance(note=f"loss {loss:.3f}, rate {rate:.1e}, {shown}")
            if state.step % settings.log_every == 0:
                facts = {"loss": loss, "learning_rate": rate, "grad_norm": norm, **speed}
                facts |= {"shortened": shortened} if shortened else {}  # prompts of this process
                state.note(accelerator, facts)
            last = state.step == settings.steps
            if config.data.validation and (last or state.step % settings.validate_every == 0):
                scores, chosen = validate(model, config, accelerator)
                state.note(accelerator, scores)
                state.judge(chosen, accelerator)
            ended = last or state.out_of_patience(settings.patience)
            if accelerator.is_main_process and (ended or state.step % settings.save_every == 0):
                state.save()
    changed = [name for name, value in frozen_checksums(model).items() if value != frozen[name]]
    state.note(accelerator, {"frozen_tensors_changed": len(changed)})
    if accelerator.is_main_process and not config.data.validation:
        model.save_pretrained(output / "best", state.facts())
    accelerator.end_training()
    return output / "best"


def make_accelerator(config: RunConfig) -> Accelerator:
    """Of the device and trackers that the configuration wants."""
    imageless = any(source.task not in IMAGE_TASKS for source in config.training_sources())
    # A batch without an image leaves the visual projections without a gradient, which DDP must be told.
    tolerant = [DistributedDataParallelKwargs(find_unused_parameters=True)] if imageless else []
    return Accelerator(
        cpu=choose_device(config.train.device).type == "cpu",
        log_with=list(config.train.trackers) or None,
        project_dir=config.train.output,
        kwargs_handlers=tolerant,
    )


def frozen_checksums(model: ExcitorModel) -> dict[str, int]:
    """Sum of the bytes of every frozen tensor, in a moment on any device; the proof that training left it alone."""
    return {
        name: int(p.detach().contiguous().view(torch.uint8).sum(dtype=torch.int64))
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


def make_optimizer(model: ExcitorModel, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with the gates in a group of their own: their own rate, and no decay."""
    named = model.trainables()
    gates = [p for name, p in named.items() if name.endswith(".gate")]
    others = [p for name, p in named.items() if not name.endswith(".gate")]
    settings = config.train
    gate_rate = settings.gate_learning_rate or settings.learning_rate
    return torch.optim.AdamW(
        [
            {"params": others, "peak": float(settings.learning_rate), "weight_decay": float(settings.weight_decay)},
            {"params": gates, "peak": float(gate_rate), "weight_decay": 0.0},
        ],
        lr=float(settings.learning_rate),
        betas=(0.9, 0.95),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: RunConfig) -> float:
    """Linear warm-up, then half a cosine to zero; returns the rate of all but the gates."""
    settings = config.train
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    factor = warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return optimizer.param_groups[0]["lr"]


def train_step(
    wrapped: Any,
    optimizer: torch.optim.Optimizer,
    window: list[Batch],
    accelerator: Accelerator,
    config: RunConfig,
) -> tuple[float, float, int]:
    """One optimizer step over the accumulated batches.

    Returns:
        Loss per answer token, gradient norm before clipping, and answer tokens, over all ranks.
    """
    counts = [(batch.inputs["labels"][:, 1:] != IGNORE).sum() for batch in window]
    total = accelerator.reduce(torch.stack(counts).sum().to(accelerator.device), reduction="sum")
    summed = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(window):
        final = number == len(window) - 1
        with lora_dropout(wrapped), contextlib.nullcontext() if final else accelerator.no_sync(wrapped):
            loss, _ = wrapped(**batch.inputs, label_smoothing=config.train.label_smoothing)
            # DDP averages gradients over ranks; the sum is what is wanted.
            accelerator.backward(loss * accelerator.num_processes / total)
        summed += loss.detach()
    summed = accelerator.reduce(summed, reduction="sum") / total
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.train.clip)
    if not (torch.isfinite(summed) and torch.isfinite(norm)):
        keys = [key for batch in window for key in batch.keys]
        raise DataError(
            f"The loss is {summed.item()} (gradient {norm.item()}) on samples {keys[:8]}: lower the rate."
        )
    optimizer.step()
    optimizer.zero_grad()
    return summed.item(), norm.item(), int(total)


def check_run(config: RunConfig, processes: int = 1) -> None:
    """Fail on what would fail later: device, trackers, batch size, shards, templates, Java.

    Raises:
        ConfigError, DataError, DependencyError: a sentence for each.
    """
    choose_device(config.train.device)
    for name in config.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise DependencyError(
                f"train.trackers names {name}, which is not installed: `pip install 'excitor-mm[{name}]'`."
            )
    shares = processes * config.train.accumulation
    if config.train.batch_size % shares:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, which {shares} (ranks x accumulation) does not divide: "
            "choose a multiple."
        )
    for source in [*config.training_sources(), *config.validation_sources()]:
        list_shards(source.shards)
    config.templates()
    if any(source.task == "caption" for source in config.validation_sources()):
        find_java()
