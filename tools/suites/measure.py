"""Sides measured in turn in one process, and their table."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from excitor_mm.console import log
from excitor_mm.files import write_json, write_text

Side = Callable[[], float | None]
"""Does the work once; returns the seconds (or bytes) that count, or None: all of the call's time."""


@dataclass(frozen=True)
class Comparison:
    """Sides of one question, the last of which the others are divided by."""

    title: str
    sides: Mapping[str, Side]
    work: float = 1
    """Units that one call of a side handles; the table shows the cost of one unit."""
    unit: str = "call"
    measure: str = "ms"
    """"ms" or "MiB"."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Sizes that the cost depends on."""
    warm_up: bool = True
    """A first round that does not count."""


class Found(NamedTuple):
    """What the sides of a comparison cost."""

    costs: dict[str, list[float]]
    """Seconds or bytes for one unit, of every round."""
    gpu_peaks: dict[str, int]
    """Bytes of a GPU's memory that a call of the side needs beside what lies there already; without a GPU 0."""


def alternate(comparison: Comparison, rounds: int) -> Found:
    """The cost of every side, one side after the other in every round."""
    found: dict[str, list[float]] = {name: [] for name in comparison.sides}
    peaks = dict.fromkeys(comparison.sides, 0)
    first = 0 if comparison.warm_up else 1
    for number in range(first, rounds + 1):
        for name, side in comparison.sides.items():
            held = start_peak()
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                value = side()
                finish()
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() - held)  # 0 without a GPU
            value = time.perf_counter() - started if value is None else value
            log(f"{comparison.title}: round {number} of {rounds}, {name}: {_shown(comparison, value):.1f}")
            if number:
                found[name].append(value / comparison.work)
    return Found(found, peaks)


def start_peak() -> int:
    """Bytes of the GPU's memory that are held now, from which its peak is counted anew; without a GPU 0."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def finish() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _shown(comparison: Comparison, value: float) -> float:
    return value * 1e3 if comparison.measure == "ms" else value / 2**20


def as_markdown(comparison: Comparison, found: Found) -> str:
    """Median, spread, ratio to the last side as the median over rounds, and the memory of a GPU if there is one."""
    facts = ", ".join(f"{key} {value}" for key, value in comparison.facts.items())
    on_gpu = any(found.gpu_peaks.values())
    heads = ["side", f"{comparison.measure} a {comparison.unit}, median", "lowest to highest", "ratio to the last"]
    heads += ["GPU MiB above all weights"] if on_gpu else []
    lines = [f"**{comparison.title}** ({facts})\n", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    base = list(found.costs.values())[-1]
    for name, values in found.costs.items():
        ratios = [value / other for value, other in zip(values, base, strict=True) if other]
        low, middle, high = (_shown(comparison, v) for v in (min(values), statistics.median(values), max(values)))
        cells = [
            name,
            f"{middle:,.1f}",
            f"{low:,.1f} to {high:,.1f}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
        ]
        cells += [f"{found.gpu_peaks[name] / 2**20:,.0f}"] if on_gpu else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and when: what every figure must be read with."""
    cpu = platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def run(suite: str, comparisons: list[Comparison], rounds: int, output: Path) -> str:
    """Measure, write `<output>/<suite>.json` and `.md`, return the Markdown."""
    where = machine()
    rows, pages = [], [f"`{suite}`: {json.dumps(where)}, {rounds} rounds\n"]
    for comparison in comparisons:
        found = alternate(comparison, rounds)
        what = {"title": comparison.title, "facts": dict(comparison.facts), "unit": comparison.unit}
        rows.append({**what, "costs": found.costs, "gpu_peaks": found.gpu_peaks})
        pages.append(as_markdown(comparison, found) + "\n")
        facts = {"suite": suite, "machine": where, "rounds": rounds, "comparisons": rows}
        write_json(output / f"{suite}.json", facts)  # after each, so that an interrupted suite keeps the others
        write_text(output / f"{suite}.md", "\n".join(pages))
    return "\n".join(pages)
