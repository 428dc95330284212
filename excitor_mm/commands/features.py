"""cache-features: visual tokens beside the shards."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import run_config
from excitor_mm.config import RunConfig
from excitor_mm.options import Command
from excitor_mm.ranges import PositiveInt

FOLDER = "features"


def _cache_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file of the run that will read them")
    parser.add_class_arguments(RunConfig)
    parser.add_argument("--views", type=PositiveInt, default=1, help="random crops and flips of a training image")
    parser.add_argument(
        "--precision",
        choices=["float16", "bfloat16", "float32"],
        default="float16",
        help="of the stored tokens; float32 trains bit-equal to encoding at every visit",
    )
    parser.add_argument("--batch-size", type=PositiveInt, default=32, help="images at a time")


def _cache(options: Namespace) -> int:
    from excitor_mm.cache_features import cache_features

    config = run_config(options)
    name = config.data.features or FOLDER
    files = cache_features(
        config, name=name, views=options.views, dtype=options.precision, batch_size=options.batch_size
    )
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 2**20:,.1f} MiB: train with --data.features {name}")
    return 0


COMMANDS = (
    Command("cache-features", "Encode a run's images once, so that training need not.", _cache_options, _cache),
)
