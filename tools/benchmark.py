"""Measure ours against the other side, in turn, in one run: `python tools/benchmark.py evaluation --references ...`.

Prints a Markdown table of medians and spreads, and writes JSON with every time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from excitor_mm.console import log
from excitor_mm.files import write_json
from excitor_mm.metrics.captions import score_captions
from excitor_mm.references import read_references

Side = Callable[[], object]


def alternate(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, one after the other in every round, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                side()
            seconds = time.perf_counter() - started
            log(f"round {number} of {rounds}: {name} {seconds:.2f} s")
            if number:
                times[name].append(seconds)
    return times


def evaluation(references: str, images: int) -> dict[str, Side]:
    """Scoring captions: ours, and the same tokenizer and scorers of pycocoevalcap called directly."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    whole = {i: texts for i, texts in read_references(references).items() if len(texts) > 1}
    chosen = dict(list(whole.items())[:images])
    truth = {i: texts[1:] for i, texts in chosen.items()}
    guesses = {i: texts[0] for i, texts in chosen.items()}  # people's own captions stand in for a model's

    def theirs() -> None:
        tokenizer = PTBTokenizer()
        gold = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in truth.items()})
        found = tokenizer.tokenize({i: [{"caption": text}] for i, text in guesses.items()})
        for scorer in (Bleu(4), Rouge(), Cider()):
            scorer.compute_score(gold, found)

    return {
        "ours, with intervals": lambda: score_captions(guesses, truth, ["BLEU", "ROUGE-L", "CIDEr"]),
        "pycocoevalcap, called directly": theirs,
    }


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite", choices=["evaluation"])
    parser.add_argument("--references", required=True, help="COCO captions with several captions an image")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark.json"))
    options = parser.parse_args()
    times = alternate(evaluation(options.references, options.images), options.rounds)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    facts = {"images": options.images, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "threads": threads}
    write_json(options.output, {"suite": options.suite, **facts, "seconds": times})
    baseline = list(times.values())[-1]
    print(f"{options.suite}: {json.dumps(facts)}\n")
    print("| side | median s | lowest to highest | ratio, median of rounds |\n|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(ours / other for ours, other in zip(values, baseline, strict=True))
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
