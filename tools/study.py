"""Does it see? Every method behind the same training, data, generation and evaluation, in one table.

    python tools/study.py --config configs/coco_caption_small.yaml --train coco/train --validation coco/val \\
      --test coco/test --output runs/study --steps 150

Rows: `excitor`, `llama-adapter`, `clipcap`, `llava` (see tools/baselines) and `lora-prefix` (LLaVA's projector, and
LoRA in the language model), each with the configuration's prompt; under the name `<method>-plain` with "Caption:"
alone. `--variant NAME key=value ...` adds an Excitor of another configuration. Equal in all rows: the frozen parts,
the photos, their order and crops, the captions drawn, the steps, the decoding, the code. The baselines train as
many parameters as the configuration's Excitor, within 10 %; a variant trains as many as it has: the table shows
them.

Each row tries its learning rates with the first seed and keeps the one with the best validation CIDEr (greedy, that
of best/); then come the other seeds at that rate. The Excitor's gates train at the configuration's rate, whatever
the rest does; llama-adapter's at the rate that is tried. A variant that sets train.learning_rate tries no other.

What is not named here goes to the configuration as in `excitor-mm train` (`--data.workers 1`). Out: a folder
<output>/<row>/<rate>/<seed>/ for each run, see studies/run.py, and study.json and study.md with the rows that are
done. The same command goes on where it was interrupted. Set OMP_NUM_THREADS to choose the number of threads. The
seconds a step are the median over steps, the batch included; the peak is the resident memory of the training
process, without those that read (of its last part, where it was interrupted).

    --variant words-50  prompt.palette_size=50          --variant closed  excitor.gate_start=0
    --variant shuffled  prompt.palette_choice=shuffled  --variant gates  train.gate_learning_rate=0.02
    --variant random    prompt.palette_choice=random    --variant full  excitor.visual_rank=null
    --variant alpaca    prompt.template=alpaca-caption  --variant plain-crops  data.crop_scale=[1,1] data.flip=0
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from baselines import equal_size
from baselines.base import load_parts
from studies import EXCITOR, METHODS, RATES, Row, carry_out
from studies.table import write_study

from excitor_mm.cli import quieten
from excitor_mm.commands import make_parser
from excitor_mm.commands.models import run_config, shipped
from excitor_mm.config import RunConfig
from excitor_mm.console import log
from excitor_mm.data.shards import list_shards
from excitor_mm.errors import ConfigError, ExcitorError
from excitor_mm.forgetting import read_text
from excitor_mm.prepare import build_for_training

PLAIN = "-plain"


def make_options() -> argparse.ArgumentParser:
    """The options of the study itself."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see configs/")
    parser.add_argument("--train", required=True, help="shards to train on")
    parser.add_argument("--validation", required=True, help="shards that choose step and rate")
    parser.add_argument(
        "--test",
        required=True,
        help="shards that are captioned and scored in the end; while recipes are chosen, name those of --validation",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="folder")
    methods = [EXCITOR, EXCITOR + PLAIN, *(name for name in METHODS if name != EXCITOR)]
    parser.add_argument("--methods", nargs="*", default=methods, help=f"rows; {' '.join(methods)} unless given")
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar="NAME key=value")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="tried by all rows")
    parser.add_argument("--seeds", type=int, default=3, help="their number, from the configuration's on")
    parser.add_argument("--steps", type=int, help="of each training; the configuration's unless given")
    parser.add_argument("--features", help="cached visual tokens; see excitor-mm cache-features")
    parser.add_argument("--text", type=Path, help="for the perplexity; the shipped one unless given")
    return parser


def read_config(options: argparse.Namespace, changes: Sequence[str]) -> RunConfig:
    """The configuration of a row: that of --config, the study's own options, and `changes` as `--key=value`."""
    given = ["--config", str(options.config), "--data.train", options.train, "--data.validation", options.validation]
    if options.steps:
        given += ["--train.steps", str(options.steps)]
    if options.features:
        given += ["--data.features", options.features]
    config = run_config(make_parser().parse_args(["train", *given, *changes]).train)
    if config.data.task != "caption":
        raise ConfigError(f"data.task is {config.data.task}, but a study scores captions: choose caption.")
    return config


def plan(options: argparse.Namespace, changes: Sequence[str]) -> list[Row]:
    """The rows of the table, with everything checked that can be before the first run.

    Raises:
        ConfigError, DataError, DependencyError: what a run would die of later.
    """
    config = read_config(options, changes)
    model = build_for_training(config)
    trainables, parts = sum(p.numel() for p in model.trainables().values()), load_parts(config, model.config.prompts)
    rows = []
    for name in options.methods:
        method = name.removesuffix(PLAIN)
        if method not in METHODS:
            raise ConfigError(f"The method is {name!r}: choose of {', '.join(METHODS)}, each also with {PLAIN}.")
        own = config
        if name.endswith(PLAIN):
            own = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, template="caption"))
        baseline = METHODS[method]
        size = equal_size(baseline, parts, trainables) if baseline else None
        rows.append(Row(name, baseline, size, own, options.rates))
    for name, *pairs in options.variant:
        own = read_config(options, [*changes, *(f"--{pair}" for pair in pairs)])
        build_for_training(own)
        fixed = any(pair.startswith("train.learning_rate=") for pair in pairs)
        rates = [own.train.learning_rate] if fixed else options.rates
        rows.append(Row(name, None, None, own, rates))
    names = [row.name for row in rows]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        raise ConfigError(
            f"The rows are called {', '.join(names)}: give each a name of its own, of letters and digits."
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a study; returns the exit status."""
    quieten()
    options, changes = make_options().parse_known_args(arguments)
    try:
        text = options.text or shipped("text/everyday.txt", "--text FILE")
        read_text(text)
        list_shards(options.test)
        rows, outcomes, page = plan(options, changes), [], ""
        for row in rows:
            outcomes.append(carry_out(row, options.output, options.seeds, test=options.test, text=text))
            page = write_study(outcomes, options.output)
    except ExcitorError as error:
        log(f"study: {error}")
        return error.status
    print(page, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
