"""fetch-defaults, pack-coco, shards check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.options import Command
from excitor_mm.ranges import NonNegativeInt, PositiveInt


def _no_options(parser: ArgumentParser) -> None:
    pass


def _fetch(options: Namespace) -> int:
    from excitor_mm.defaults.fetch import fetch_defaults

    for name, path in fetch_defaults().items():
        print(f"{name}\t{path}")
    return 0


def _pack_options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="folder with the pictures")
    for name, text in (
        ("captions", "COCO captions JSON, plain or gzipped, or image_info_test2014.json"),
        ("karpathy", "Karpathy's dataset_coco.json"),
        ("ids", 'JSON {"train": [ids], "test": [ids]}'),
        ("questions", "VQAv2 questions JSON"),
        ("answers", "VQAv2 annotations JSON"),
    ):
        parser.add_argument(f"--{name}", type=Path | None, default=None, help=text)
    parser.add_argument(
        "--split", type=str | None, default=None, help="train (with restval), train-only, val, test, ..."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--name", type=str, default="coco", help="shards are called NAME-000000.tar")
    parser.add_argument("--samples-per-shard", type=PositiveInt, default=1000, help="images in a shard")
    parser.add_argument(
        "--max-size", type=PositiveInt | None, default=None, help="re-encode to this shorter side in pixels"
    )
    parser.add_argument("--allow-missing", action="store_true", help="finish although images cannot be used")
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="processes; all cores unless given")


def _pack(options: Namespace) -> int:
    from excitor_mm.data.coco import Source, pack_coco

    names = [item.name for item in dataclasses.fields(Source)]
    report = pack_coco(
        Source(**{name: options[name] for name in names}),
        options.output,
        name=options.name,
        samples_per_shard=options.samples_per_shard,
        max_size=options.max_size,
        allow_missing=options.allow_missing,
        workers=options.workers,
    )
    print(json.dumps(dataclasses.asdict(report)))
    return 0


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("shards", type=str, help="folder, tar files as a brace list, or URL")
    parser.add_argument("--ranks", type=PositiveInt, default=1, help="processes of the planned training")
    parser.add_argument("--workers", type=NonNegativeInt, default=2, help="decoding processes per rank")
    parser.add_argument("--batch-size", type=PositiveInt, default=32, help="images a step and rank")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _check(options: Namespace) -> int:
    from excitor_mm.data.check import check_shards, format_check

    check = check_shards(options.shards, ranks=options.ranks, workers=options.workers, batch_size=options.batch_size)
    print(json.dumps(dataclasses.asdict(check)) if options.json else format_check(check))
    return 0 if check.ok else 1


COMMANDS = (
    Command("fetch-defaults", "Download and convert the default frozen parts, once.", _no_options, _fetch),
    Command("pack-coco", "COCO images and annotations to WebDataset shards.", _pack_options, _pack),
    Command("shards check", "What is good and bad in shards, and who reads them.", _check_options, _check),
)
