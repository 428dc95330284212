"""Two other forms of the Excitor, for experiments: `python docs/experiments/other_forms.py one-gate train ...`.

    one-gate        a layer has one gate, not one for each key head
    one-projection  the tokens of all encoders meet the same visual projections; narrower ones are padded with zeros

Behind the form comes what `excitor-mm` takes. An adapter that was trained so is read in the same form only
(`... one-gate predict ...`). docs/log.md, 2026-12-01, has what came of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excitor_mm.cli import main
from excitor_mm.excitor import Excitor
from excitor_mm.vision.tower import VisionTower

first_excitor, first_tower, tokens_of_each = Excitor.__init__, VisionTower.__init__, VisionTower.tokens


def one_gate(self: Excitor, *sizes: Any, gate_start: float, **named: Any) -> None:
    """`Excitor.__init__` with a gate of one number."""
    first_excitor(self, *sizes, gate_start=gate_start, **named)
    self.gate = nn.Parameter(torch.full((1,), gate_start))


def widest(self: VisionTower, encoders: Sequence[Any]) -> None:
    """`VisionTower.__init__` with the width of the widest encoder in place of the sum."""
    first_tower(self, encoders)
    self.width = max(encoder.width for encoder in encoders)


def tokens_of_all(self: VisionTower, pixels: Sequence[Tensor]) -> list[Tensor]:
    """`VisionTower.tokens` as if one encoder had given them: float32[B, sum of N_i, width]."""
    found = tokens_of_each(self, pixels)
    return [torch.cat([F.pad(part, (0, self.width - part.shape[-1])) for part in found], dim=1)]


if __name__ == "__main__":
    form = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if form == "one-gate":
        Excitor.__init__ = one_gate  # type: ignore[method-assign]
    elif form == "one-projection":
        VisionTower.__init__, VisionTower.tokens = widest, tokens_of_all  # type: ignore[method-assign, assignment]
    else:
        sys.exit(f"Got the form {form!r}: give one-gate or one-projection, and behind it a command of excitor-mm.")
    sys.exit(main())
