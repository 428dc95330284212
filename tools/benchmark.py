"""Measure ours against the other side, in turn, in one run: `python tools/benchmark.py decode generate`.

Prints Markdown tables of medians and spreads, and writes them with every single figure under --output. Progress goes
to stderr. Set OMP_NUM_THREADS to choose the number of threads; it stands in the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from suites import SUITES
from suites.growth import draw
from suites.measure import run

from excitor_mm.commands.models import shipped

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run suites."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suites", choices=list(SUITES), nargs="+", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--adapter", type=Path, default=None, help="adapter folder; the shipped one unless given")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="of train-step and answers"
    )
    parser.add_argument(
        "--images",
        default=str(ROOT / "data" / "sample" / "train"),
        help="shards, or for caption also a folder of pictures",
    )
    parser.add_argument("--references", help="of evaluation: COCO captions with several captions an image")
    parser.add_argument("--count", type=int, default=64, help="pictures, where a suite takes pictures")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-tokens", type=int, default=257, help="of prefill, decode, generate and memory")
    parser.add_argument("--new-tokens", type=int, default=12, help="written for every picture")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="see excitor-mm caption"
    )
    parser.add_argument("--sides", nargs="+", help="of train-step, prefill, decode and generate; all unless given")
    parser.add_argument("--rounds", type=int, default=5, help="each runs every side once; one more warms up")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder")
    options = parser.parse_args()
    options.adapter = options.adapter or shipped("adapters/coco-small", "--adapter FOLDER")
    if "evaluation" in options.suites and not options.references:
        parser.error("evaluation needs --references")
    for suite in options.suites:
        print(run(suite, SUITES[suite](options), options.rounds, options.output), flush=True)
        if suite == "growth":
            draw(options.output / "growth.json", options.output / "growth.png")


if __name__ == "__main__":
    main()
