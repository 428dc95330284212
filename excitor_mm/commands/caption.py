"""caption: pictures and collections of them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import generation_options, load_model
from excitor_mm.config import DecodingConfig
from excitor_mm.console import log
from excitor_mm.errors import ConfigError
from excitor_mm.options import Command

if TYPE_CHECKING:
    from excitor_mm.caption_files import Output


def _options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths", type=str, nargs="+", help="files, folders, globs, tar shards, or - for paths on stdin"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help=".jsonl or .csv; what it holds already is not captioned again",
    )
    parser.add_argument("--sidecar", action="store_true", help="photo.txt beside photo.jpg, unless it is there")
    parser.add_argument("--overwrite", action="store_true", help="caption again what is captioned")
    parser.add_argument(
        "--watch", type=float | None, default=None, metavar="SECONDS", help="look for new files until Ctrl-C"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that read pictures")
    parser.add_argument(
        "--allow-unreadable", action="store_true", help="exit with 0 although pictures are unreadable"
    )
    generation_options(parser)


def _caption(options: Namespace) -> int:
    from excitor_mm.generate import caption_collection
    from excitor_mm.pictures import find_pictures, watch_pictures

    _check(options)
    if options.watch is None:
        rounds = iter([find_pictures(options.paths, sys.stdin)])
    else:
        rounds = watch_pictures(options.paths, options.watch)
    model, folder, decoding = load_model(options)
    unreadable: dict[str, str] = {}
    stop = contextlib.nullcontext() if options.watch is None else contextlib.suppress(KeyboardInterrupt)
    with contextlib.closing(_output(options, folder.name, decoding)) as output, stop:
        for collection in rounds:
            if collection.count == 0:
                continue
            summary = caption_collection(
                model,
                collection,
                output,
                adapter=folder.name,
                batch_size=options.batch_size,
                workers=options.workers,
                prompt=options.prompt,
                decoding=decoding,
            )
            if collection.count != 1:
                log(str(summary))
            unreadable = {path: why for path, why in unreadable.items() if path not in collection.files}
            unreadable |= summary.unreadable
    for why in unreadable.values():
        log(f"excitor-mm: {why}")
    return 2 if unreadable and not options.allow_unreadable else 0


def _check(options: Namespace) -> None:
    """Options that exclude each other."""
    if options.output and options.sidecar:
        raise ConfigError("--output and --sidecar are given: choose one file or a file beside each picture.")
    if options.watch is not None and (
        options.watch <= 0 or any(p == "-" or p.endswith(".tar") for p in options.paths)
    ):
        raise ConfigError(
            "--watch looks at folders and globs every SECONDS > 0: give no shards and no list on stdin."
        )
    if options.sidecar and any(path.endswith(".tar") for path in options.paths):
        raise ConfigError("--sidecar writes beside pictures, but a shard is given: use --output.")


def _output(options: Namespace, adapter: str, decoding: DecodingConfig) -> Output:
    from excitor_mm.caption_files import CaptionFile, Lines, Sidecars

    if options.output:
        settings = {"adapter": adapter, "prompt": options.prompt, "decoding": dataclasses.asdict(decoding)}
        return CaptionFile(options.output, settings, options.overwrite)
    if options.sidecar:
        return Sidecars(options.overwrite)
    alone = len(options.paths) == 1 and Path(options.paths[0]).is_file()
    return Lines("json" if options.json else "caption" if alone else "path")


COMMANDS = (Command("caption", "Caption pictures: files, folders, shards, as they arrive.", _options, _caption),)
