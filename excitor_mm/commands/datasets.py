"""fetch-defaults, the packers, shards check."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.errors import ConfigError
from excitor_mm.options import Command
from excitor_mm.ranges import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from excitor_mm.data.pack import DataSet


def _no_options(parser: ArgumentParser) -> None:
    pass


def _fetch(options: Namespace) -> int:
    from excitor_mm.defaults.fetch import fetch_defaults

    for name, path in fetch_defaults().items():
        print(f"{name}\t{path}")
    return 0


def _packing_options(parser: ArgumentParser, name: str) -> None:
    """What all packers share."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--name", type=str, default=name, help="shards are called NAME-000000.tar")
    parser.add_argument("--samples-per-shard", type=PositiveInt, default=1000, help="samples in a shard")
    parser.add_argument(
        "--max-size", type=PositiveInt | None, default=None, help="re-encode to this shorter side in pixels"
    )
    parser.add_argument("--allow-missing", action="store_true", help="finish although something cannot be used")
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="processes; all cores unless given")


def _pack(data: DataSet, options: Namespace) -> int:
    """Pack, and print what was packed."""
    from excitor_mm.data.pack import pack

    report = pack(
        data,
        options.output,
        name=options.name,
        samples_per_shard=options.samples_per_shard,
        max_size=options.max_size,
        allow_missing=options.allow_missing,
        workers=options.workers,
    )
    print(json.dumps(dataclasses.asdict(report)))
    return 0


def _files(parser: ArgumentParser, **files: str) -> None:
    """Optional files, name -> help."""
    for name, text in files.items():
        parser.add_argument(f"--{name}", type=Path | None, default=None, help=text)


def _pack_coco_options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="folder with the pictures")
    _files(
        parser,
        captions="COCO captions JSON, plain or gzipped, or image_info_test2014.json",
        karpathy="Karpathy's dataset_coco.json",
        ids='JSON {"train": [ids], "test": [ids]}',
        questions="VQAv2 questions JSON",
        answers="VQAv2 annotations JSON",
    )
    parser.add_argument(
        "--split", type=str | None, default=None, help="train (with restval), train-only, val, test, ..."
    )
    _packing_options(parser, "coco")


def _pack_coco(options: Namespace) -> int:
    from excitor_mm.data.coco import Source, read_coco

    names = [item.name for item in dataclasses.fields(Source)]
    return _pack(read_coco(Source(**{name: options[name] for name in names})), options)


def _pack_vqa_options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="folder with the pictures")
    parser.add_argument("--questions", type=Path, required=True, help="VQAv2 questions JSON")
    _files(parser, answers="VQAv2 annotations JSON; without it the shards can only be predicted")
    _packing_options(parser, "vqa")


def _pack_vqa(options: Namespace) -> int:
    from excitor_mm.data.vqa import read_vqa

    return _pack(read_vqa(options.images, options.questions, options.answers), options)


def _pack_scienceqa_options(parser: ArgumentParser) -> None:
    parser.add_argument("--problems", type=Path, required=True, help="problems.json")
    _files(
        parser,
        images="folder with <split>/<id>/image.png",
        splits="pid_splits.json",
        captions="captions.json of the images; they join the context",
    )
    parser.add_argument("--split", type=str | None, default=None, help="train, val, test, minitrain, ...")
    parser.add_argument("--text-only", action="store_true", help="leave the images out")
    parser.add_argument("--subset", action="store_true", help="problems of the split may be missing")
    _packing_options(parser, "scienceqa")


def _pack_scienceqa(options: Namespace) -> int:
    from excitor_mm.data.scienceqa_files import read_scienceqa

    if options.text_only == (options.images is not None):
        raise ConfigError("Give the folder of the images with --images, or --text-only to leave them out.")
    data = read_scienceqa(
        options.problems,
        options.images,
        splits=options.splits,
        split=options.split,
        captions=options.captions,
        subset=options.subset,
    )
    return _pack(data, options)


def _pack_instructions_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=Path, required=True, help="JSON or JSON lines: Alpaca, seeds, chat, LLaVA")
    _files(parser, images="folder of the images that rows name")
    parser.add_argument("--part", type=str | None, default=None, help="FIRST:LAST, some of the rows, as in Python")
    _packing_options(parser, "instructions")


def _pack_instructions(options: Namespace) -> int:
    from excitor_mm.data.instructions import read_instructions

    part = None
    if options.part is not None:
        try:
            first, last = (int(number) if number else None for number in options.part.split(":"))
        except ValueError as error:
            raise ConfigError(f"--part is {options.part!r}, expected FIRST:LAST, such as :150 or 150:.") from error
        part = slice(first, last)
    return _pack(read_instructions(options.rows, options.images, part), options)


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("shards", type=str, help="folder, tar files as a brace list, or URL")
    parser.add_argument("--ranks", type=PositiveInt, default=1, help="processes of the planned training")
    parser.add_argument("--workers", type=NonNegativeInt, default=2, help="decoding processes per rank")
    parser.add_argument("--batch-size", type=PositiveInt, default=32, help="images a step, over all ranks")
    parser.add_argument("--lanes", type=PositiveInt, default=16, help="data.lanes of the planned training")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _check(options: Namespace) -> int:
    from excitor_mm.data.check import check_shards, format_check

    check = check_shards(
        options.shards,
        ranks=options.ranks,
        workers=options.workers,
        batch_size=options.batch_size,
        lanes=options.lanes,
    )
    print(json.dumps(dataclasses.asdict(check)) if options.json else format_check(check))
    return 0 if check.ok else 1


COMMANDS = (
    Command("fetch-defaults", "Download and convert the default frozen parts, once.", _no_options, _fetch),
    Command("pack-coco", "COCO images and annotations to WebDataset shards.", _pack_coco_options, _pack_coco),
    Command("pack-vqa", "Images and questions (VQAv2, OK-VQA, VizWiz) to shards.", _pack_vqa_options, _pack_vqa),
    Command("pack-scienceqa", "ScienceQA to shards.", _pack_scienceqa_options, _pack_scienceqa),
    Command(
        "pack-instructions",
        "Instructions or conversations to shards.",
        _pack_instructions_options,
        _pack_instructions,
    ),
    Command("shards check", "What is good and bad in shards, and who reads them.", _check_options, _check),
)
