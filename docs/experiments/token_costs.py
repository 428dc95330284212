"""What two changes to generation save: `PYTHONPATH=tools python docs/experiments/token_costs.py PHOTO...`.

Captions of the photos with and without the logits of every prompt token, with one beam and with three; and drawing a
token of 160 captions by cumulative shares (`scst.Draw`) and by Gumbel noise, as it was before. Prints the tables of
tools/benchmark.py; docs/speed.md has the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import torch
from suites.measure import Comparison, run
from suites.models import load_ours, text
from torch import Tensor

from excitor_mm.commands.models import shipped
from excitor_mm.scst import Draw

IMAGES, SAMPLES, WORDS, TEMPERATURE = 16, 10, 49_152, 0.4


def prompts(photos: list[str]) -> list[Comparison]:
    """`generate` as it is, and with the logits of the whole prompt."""
    model = load_ours(shipped("adapters/coco-small", "--adapter FOLDER"), "float32")
    pixels = [model.processor.pixels(photo) for photo in photos]
    inputs = text(model, len(photos))
    tokens = model.tower.tokens([torch.stack(parts) for parts in zip(*pixels, strict=True)])
    facts = {"photos": len(photos), "prompt tokens": inputs["input_ids"].shape[1]}
    comparisons = []
    for beams in (1, 3):
        decoding = dataclasses.replace(model.config.decoding, beams=beams, max_new_tokens=20)
        write = partial(model.generate, **inputs, pixel_values=tokens, decoding=decoding)
        if not torch.equal(write(), write(logits_to_keep=0)):
            raise SystemExit("The two sides write different captions.")
        sides = {
            "every prompt token meets the vocabulary": lambda write=write: void(write(logits_to_keep=0)),
            "the last one": lambda write=write: void(write()),
        }
        comparisons.append(Comparison("captions", sides, facts={**facts, "beams": beams}))
    return comparisons


def draws() -> Comparison:
    """One token of every caption."""
    scores = torch.randn(IMAGES * SAMPLES, WORDS) * 3
    generators = [torch.Generator().manual_seed(seed) for seed in range(IMAGES)]
    draw = Draw(range(IMAGES), SAMPLES, TEMPERATURE, scores.device)

    def gumbel() -> None:
        noisy = scores.clone()
        for generator, rows in zip(generators, noisy.chunk(IMAGES), strict=True):
            rows -= TEMPERATURE * torch.empty_like(rows).exponential_(generator=generator).log_()
        chosen = noisy.argmax(dim=-1, keepdim=True)
        torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    sides = {"Gumbel noise": gumbel, "cumulative shares": lambda: void(draw(torch.empty(0), scores))}
    return Comparison("draws", sides, facts={"captions": len(scores), "words": WORDS})


def void(_: Tensor) -> None:
    """A side that returns nothing is timed as a whole."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/token-costs"), help="folder")
    options = parser.parse_args()
    print(run("draws", [draws()], 2 * options.rounds, options.output))
    print(run("prompts", prompts(options.photos), options.rounds, options.output))
