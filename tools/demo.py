"""`make demo`: the main job from the frozen parts to a scored captioner, with a report to look at.

Fetches the default parts, captions two photos with the shipped adapter, trains on the drawn scenes of
data/sample, captions and scores scenes whose combinations training never had, and writes report.html.
`--quick` takes the same path with few steps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from excitor_mm.cli import main as excitor_mm
from excitor_mm.console import log
from excitor_mm.report import collect_pictures, read_scored, write_report

RUN = Path("runs/demo")
TEST = "data/sample/test"
COMMANDS: list[str] = []


def run(*arguments: str) -> str:
    """Run an excitor-mm command in this process, showing and returning what it prints."""
    COMMANDS.append("excitor-mm " + " ".join(arguments))
    log(f"\n$ {COMMANDS[-1]}")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = excitor_mm(arguments)
    print(output.getvalue(), end="", flush=True)
    if status:
        sys.exit(status)
    return output.getvalue()


def demo(extra: Sequence[str]) -> None:
    """All steps; `extra` are arguments for the training."""
    started = time.monotonic()
    run("fetch-defaults")
    run("caption", "data/photos/cat.jpg", "data/photos/coffee.jpg")
    run("train", "--config", "configs/demo.yaml", "--overwrite", *extra)
    predictions = RUN / "predictions.jsonl"
    adapter = str(RUN / "best")
    run("predict", "--adapter", adapter, "--shards", TEST, "--output", str(predictions), "--batch-size", "20")
    scored = ["--output", str(RUN / "report.json"), "--shuffled-control"]
    run("evaluate", "captions", "--predictions", str(predictions), "--references", TEST, *scored)
    report = json.loads((RUN / "report.json").read_text(encoding="utf-8"))
    cider, control = report["scores"]["CIDEr"], report["shuffled_control"]["CIDEr"]
    lines = (RUN / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    metrics = [json.loads(line) for line in lines if line]
    facts = {
        "CIDEr on unseen combinations": f"{cider:.1f} (x100, {report['count']} scenes)",
        "CIDEr with the images shuffled": f"{control:.1f}",
        "Tensors of the frozen parts that changed": str(metrics[-1]["frozen_tensors_changed"]),
        "Minutes": f"{(time.monotonic() - started) / 60:.1f}",
    }
    write_report(
        RUN / "report.html",
        title="excitor-mm demo",
        facts=facts,
        pictures=collect_pictures(TEST, "caption", read_scored(RUN / "report.json", "caption")),
        metrics=metrics,
        commands=COMMANDS,
    )
    for name, value in facts.items():
        print(f"{name}: {value}")
    print(f"Open {RUN / 'report.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few steps: shows the path, not the quality")
    quick = ["--train.steps", "6", "--train.warmup_steps", "2", "--train.log_every", "1"]
    demo(quick if parser.parse_args().quick else [])
