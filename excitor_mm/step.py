"""One optimizer step: forward, backward, summed gradients, and what happens when a number is not finite.

The loss of a step is divided once by the number of answer tokens (of drawn captions, where those are weighted) over
all ranks and accumulated batches, so 1 x 8 and 4 x 2 give the same gradients. The trainable parameters are float32
throughout. A float16 language model gets loss scaling: a gradient that overflows is computed again at half the scale,
so no step is lost. Whatever else is not finite stops the run or leaves the step out, on all ranks together, and names
the samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from excitor_mm.config import RunConfig
from excitor_mm.console import log
from excitor_mm.data.pipeline import Batch
from excitor_mm.errors import DataError
from excitor_mm.lora import lora_dropout
from excitor_mm.model import ExcitorModel
from excitor_mm.parallel import sum_gradients, whole


class StepFacts(NamedTuple):
    """What a step came to, over all ranks."""

    loss: float
    """Per answer token, or per drawn caption."""
    norm: float
    """Of the gradient, before clipping."""
    applied: bool
    """False when the step was left out."""


def make_scaler(config: RunConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales losses of a float16 language model; does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=config.language.dtype == "float16")


def train_step(
    model: ExcitorModel,
    optimizer: torch.optim.Optimizer,
    window: list[Batch],
    count: int,
    accelerator: Accelerator,
    config: RunConfig,
    scaler: torch.amp.GradScaler,
) -> StepFacts:
    """One optimizer step over the accumulated batches of all ranks; the loss is summed and divided by `count`.

    Raises:
        DataError: a loss or gradient that is not finite, unless train.nonfinite is "skip".
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    while True:
        optimizer.zero_grad()
        summed = torch.zeros((), device=accelerator.device)
        for batch in window:
            with lora_dropout(model):
                loss, _ = model(**batch.inputs, label_smoothing=config.train.label_smoothing)
            scaler.scale(loss / count).backward()
            summed += loss.detach()
        sum_gradients(parameters, accelerator)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.train.clip).item()
        value = (accelerator.reduce(summed, reduction="sum") / count).item()
        sound = math.isfinite(value) and math.isfinite(norm)
        overflow = scaler.is_enabled() and math.isfinite(value) and not sound and scaler.get_scale() > 1
        if sound:
            scaler.step(optimizer)
        scaler.update()
        if not overflow:
            break
    if not sound:
        _object(model, window, accelerator, config, value, norm)
    optimizer.zero_grad()
    return StepFacts(value, norm, sound)


def _object(
    model: ExcitorModel, window: list[Batch], accelerator: Accelerator, config: RunConfig, loss: float, norm: float
) -> None:
    """Name the samples that are at fault; raise, or log that the step is left out."""
    alone = gather_object(bad_samples(model, window))
    keys = alone or gather_object([key for batch in window for key in batch.keys])
    among = "" if alone else "one of "
    message = f"The loss is {loss} (gradient {norm}) on {among}{keys[:8]}"
    if config.train.nonfinite == "stop":
        raise DataError(f"{message}: look at these samples, lower the rate, or set train.nonfinite to skip.")
    if accelerator.is_main_process:
        log(f"{message}: the step is left out")


@torch.no_grad()
def bad_samples(model: ExcitorModel, window: list[Batch]) -> list[str]:
    """Keys of the samples whose own loss is not finite."""
    keys = []
    with whole(model):
        for batch in window:
            for row, key in enumerate(batch.keys):
                if not torch.isfinite(model(**batch.row(row))[0]):
                    keys.append(key)
    return list(dict.fromkeys(keys))
