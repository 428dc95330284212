"""How alike the gradients of different steps are at one model: `python docs/experiments/gradient_noise.py train ...`.

Takes what `excitor-mm train` takes. No step is applied, so all gradients are those of the model that the run starts
from. Prints the cosine of two steps' gradients over all pairs; see docs/log.md, 2026-11-30.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch

from excitor_mm.cli import main
from excitor_mm.data.pipeline import Batch
from excitor_mm.model import ExcitorModel
from excitor_mm.step import StepFacts

found: list[torch.Tensor] = []


def keep_gradient(
    model: ExcitorModel, optimizer: torch.optim.Optimizer, window: list[Batch], count: int, *_: Any
) -> StepFacts:
    """In place of `step.train_step`: the gradient is kept, and nothing changes."""
    optimizer.zero_grad()
    for batch in window:
        loss, _tokens = model(**batch.inputs)
        (loss / count).backward()
    found.append(torch.cat([p.grad.flatten() for p in model.trainables().values() if p.grad is not None]))
    optimizer.zero_grad()
    return StepFacts(0.0, float(found[-1].norm()), applied=True)


if __name__ == "__main__":
    with patch("excitor_mm.train.train_step", keep_gradient):
        status = main()
    if status or len(found) < 2:
        sys.exit(status or "Give the run at least two steps.")
    unit = torch.nn.functional.normalize(torch.stack(found), dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
    cosines = (unit @ unit.T)[rows, columns]
    print(f"{len(unit)} steps, cosine of two: mean {cosines.mean():.4f}, {cosines.min():.3f} to {cosines.max():.3f}")
