"""The suites of tools/benchmark.py: each turns the options into comparisons."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from suites.captioning import caption
from suites.generation import decode, generate, prefill
from suites.growth import growth
from suites.measure import Comparison
from suites.memory import memory
from suites.reading import reader
from suites.scoring import evaluation
from suites.starting import startup
from suites.training import answers, train_step

SUITES: dict[str, Callable[[Namespace], list[Comparison]]] = {
    "train-step": train_step,
    "answers": answers,
    "prefill": prefill,
    "decode": decode,
    "generate": generate,
    "caption": caption,
    "reader": reader,
    "evaluation": evaluation,
    "startup": startup,
    "memory": memory,
    "growth": growth,
}
