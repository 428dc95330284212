"""Train Excitor blocks on shards: configuration in, run folder out.

    <output>/config.yaml       the resolved configuration
    <output>/metrics.jsonl     one line every log_every steps, and one for each validation
    <output>/report.html       curves, gates, and pictures of the last validation (validation.jsonl)
    <output>/best/, last/      adapter folders: best validation score, and the latest
    <output>/checkpoints/      what `--resume` needs, see checkpoint.py

The loop is read from top to bottom in `_run`; a step is in step.py, its samples come from batches.py, and in
self-critical training (train.stage scst) their captions from scst.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from excitor_mm.batches import Windows
from excitor_mm.branches import check_branches
from excitor_mm.checkpoint import RunState, check_folder, claim_folder, read_checkpoint
from excitor_mm.config import RunConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.order import stable_hash
from excitor_mm.data.shards import list_shards
from excitor_mm.errors import ConfigError, DependencyError, Stopped
from excitor_mm.files import hold
from excitor_mm.language import choose_device
from excitor_mm.metrics.java import find_java
from excitor_mm.model import ExcitorModel
from excitor_mm.parallel import StopSignals, agree, local, on_main, shard_frozen, share_parameters, whole
from excitor_mm.prepare import Build, build_excitor, build_for_training
from excitor_mm.report import write_training_report
from excitor_mm.scst import Drawn, SelfCritic, check_scst
from excitor_mm.step import make_scaler, train_step
from excitor_mm.validate import SCORES, validate


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False, build: Build = build_excitor) -> Path:
    """Run a training to its end.

    Args:
        config: of the run.
        resume: go on from the run folder's checkpoint.
        overwrite: delete an older run of the same name.
        build: makes the model; another method than Excitor brings its own.

    Returns:
        The best adapter folder.

    Raises:
        ConfigError, DataError, DependencyError: before the first step wherever possible.
        Stopped: a signal came; the run was saved before.
    """
    settings = config.train
    output = Path(settings.output)
    accelerator = Accelerator(
        cpu=choose_device(settings.device).type == "cpu",
        log_with=list(settings.trackers) or None,
        project_dir=output,
    )
    check_run(config, accelerator.num_processes)
    on_main(accelerator, lambda: check_folder(output, config, resume, overwrite))
    torch.manual_seed(settings.seed)
    model = build_for_training(config, build).to(accelerator.device)
    with contextlib.ExitStack() as stack:

        def claim() -> None:  # last of all that can fail, because it may delete an older run
            stack.enter_context(hold(output))
            claim_folder(output, config, resume, overwrite)

        on_main(accelerator, claim)
        return _run(config, model, accelerator, output, resume)


def _run(config: RunConfig, model: ExcitorModel, accelerator: Accelerator, output: Path, resume: bool) -> Path:
    settings = config.train
    optimizer, scaler = make_optimizer(model, config), make_scaler(config, accelerator.device)
    measured = [SCORES[source.task][1] for source in config.validation_sources()]
    state = RunState(model, optimizer, scaler, output, measured)
    if resume:
        saved = [on_main(accelerator, lambda: read_checkpoint(output))]
        state.load(broadcast_object_list(saved)[0])
        if accelerator.is_main_process:
            state.forget_later_metrics()
    share_parameters(list(model.trainables().values()))
    if settings.shard_frozen:
        shard_frozen(model)
    windows = Windows(config, model, accelerator, start=state.step)
    critic = SelfCritic(config, model, accelerator) if settings.stage == "scst" else None
    if accelerator.is_main_process:
        log(f"{sum(p.numel() for p in model.trainables().values()):,} trainable parameters on {model.device}")
        accelerator.init_trackers("excitor-mm", {"config": json.dumps(dataclasses.asdict(config))})

    frozen = frozen_checksums(model)
    started, images, answered, shortened = time.monotonic(), 0, 0, 0
    progress = Progress("training", settings.steps, "steps", done=state.step, shown=accelerator.is_main_process)
    with StopSignals() as signals, progress as bar, contextlib.closing(windows):
        ended, stopping = state.step >= settings.steps or state.out_of_patience(settings.patience), 0
        while not ended and not stopping:
            rate, begun = set_learning_rate(optimizer, state.step, config), time.monotonic()
            window = windows.next()
            share = critic.count(window.batches) if critic else window.tokens
            count, stopping = agree(accelerator, share, window.error, signals.received)
            torch.manual_seed(stable_hash(settings.seed, state.step, accelerator.process_index))
            drawn = critic.draw(window.batches) if critic else Drawn(window.batches, count, {})
            facts = train_step(model, optimizer, drawn.batches, count, accelerator, config, scaler)
            state.step += 1
            state.left_out += not facts.applied
            shortened += sum(batch.shortened for batch in window.batches)
            images, answered = images + settings.batch_size, answered + drawn.tokens
            seconds = time.monotonic() - started
            speed = {"images_per_s": images / seconds, "tokens_per_s": answered / seconds}
            shown = f"{speed['images_per_s']:.1f} images/s, {speed['tokens_per_s']:.0f} tokens/s"
            learnt = f"reward {drawn.facts['reward']:.1f}" if critic else f"loss {facts.loss:.3f}"
            bar.advance(note=f"{learnt}, rate {rate:.1e}, {shown}")
            if state.step % settings.log_every == 0:
                row = {"loss": facts.loss, **drawn.facts, "learning_rate": rate, "grad_norm": facts.norm, **speed}
                row["step_seconds"] = time.monotonic() - begun  # of this step alone, its batch included
                gates = [block.gate.abs().mean().item() for block in model.language.excitors().values()]
                row |= {"shortened": shortened} if shortened else {}  # prompts of this process
                if accelerator.device.type == "cuda":
                    row["gpu_peak_mib"] = torch.cuda.max_memory_allocated(accelerator.device) / 2**20
                state.note(accelerator, {**row, "gates": gates})
            last = state.step == settings.steps
            if config.data.validation and (last or state.step % settings.validate_every == 0):
                with whole(model):
                    scores, chosen = validate(model, config, accelerator)
                state.note(accelerator, scores)
                if state.judge(chosen):
                    on_main(accelerator, lambda: model.save_pretrained(output / "best", state.facts()))
            ended = last or state.out_of_patience(settings.patience)
            if ended or stopping or state.step % settings.save_every == 0:
                on_main(accelerator, lambda: state.save(settings.keep))
    if stopping and not ended:
        raise Stopped(f"Stopped after step {state.step} and saved: go on with --resume.", stopping)
    changed = [name for name, value in frozen_checksums(model).items() if value != frozen[name]]
    state.note(accelerator, {"frozen_tensors_changed": len(changed), "steps_left_out": state.left_out})
    if not config.data.validation:
        on_main(accelerator, lambda: model.save_pretrained(output / "best", state.facts()))
    first = config.validation_sources()[0] if config.data.validation else None
    on_main(accelerator, lambda: write_training_report(output, first))
    accelerator.end_training()
    return output / "best"


def frozen_checksums(model: ExcitorModel) -> dict[str, int]:
    """Sum of the bytes of every frozen tensor, as far as this process holds it; proof that training left it alone."""
    return {
        name: int(local(p.detach()).contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64))
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
    check_scst(config)
    check_branches(config)
    if any(source.task == "caption" for source in config.validation_sources()):
        find_java()
