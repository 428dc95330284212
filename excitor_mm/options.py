"""The options of every command, and a parser that answers a misspelt key with the right one."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.console import log


class _Parser(ArgumentParser):
    """Unknown keys are answered with the nearest known one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one sentence and exit with status 2."""
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:?) '?(?:--)?([\w.]+)", str(message))
        hint = ""
        if unknown:
            near = difflib.get_close_matches(unknown.group(1), config_keys(RunConfig), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
        log(f"excitor-mm: {' '.join(str(message).split())}{hint}")
        raise SystemExit(2)


def config_keys(cls: type, prefix: str = "") -> list[str]:
    """All dotted keys of a nested dataclass."""
    keys = []
    for item in dataclasses.fields(cls):
        keys.append(prefix + item.name)
        if item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
            if dataclasses.is_dataclass(value):
                keys += config_keys(type(value), f"{prefix}{item.name}.")
    return keys


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="excitor-mm", description="Image captioning with LLaMA-Excitor.")
    subcommands = parser.add_subcommands()

    def add(name: str, help_text: str) -> ArgumentParser:
        sub = _Parser(description=help_text)
        subcommands.add_subcommand(name, sub, help=help_text)
        return sub

    add("fetch-defaults", "Download and convert the default frozen parts, once.")

    sub = add("pack-coco", "COCO images and annotations to WebDataset shards.")
    _add_pack(sub)

    sub = add("shards", "Check shards: `excitor-mm shards check DIR`.")
    sub.add_argument("action", choices=["check"], help="what to do")
    sub.add_argument("shards", type=str, help="folder, tar files as a brace list, or URL")
    sub.add_argument("--ranks", type=int, default=1, help="processes of the planned training")
    sub.add_argument("--workers", type=int, default=2, help="decoding processes per rank")
    sub.add_argument("--batch-size", type=int, default=32, help="images a step and rank")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")

    sub = add("train", "Train Excitor blocks on caption shards.")
    sub.add_argument("--config", action="config", help="YAML file; see configs/")
    sub.add_class_arguments(RunConfig)
    sub.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    sub.add_argument("--overwrite", action="store_true", help="delete an older run in the same folder")
    sub.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")

    sub = add("caption", "Caption pictures.")
    sub.add_argument("paths", type=str, nargs="+", help="files, folders, globs, or - for paths on stdin")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_generation(sub)

    sub = add("predict", "Caption every sample of shards.")
    sub.add_argument("--shards", type=str, required=True, help="folder, brace list or URL")
    sub.add_argument("--output", type=Path, required=True, help="predictions.jsonl")
    sub.add_argument("--workers", type=int, default=2, help="decoding processes")
    sub.add_argument("--overwrite", action="store_true", help="start anew")
    _add_generation(sub)

    sub = add("evaluate", "Score predictions: `excitor-mm evaluate captions ...`.")
    sub.add_argument("task", choices=["captions"], help="what was predicted")
    sub.add_argument("--predictions", type=Path, required=True, help="predictions.jsonl or COCO results")
    sub.add_argument("--references", type=str, required=True, help="shards, COCO annotations or Karpathy's file")
    sub.add_argument("--split", type=str | None, default=None, help="of Karpathy's file or of --ids")
    sub.add_argument("--ids", type=Path | None, default=None, help="file that names the images that count")
    sub.add_argument("--output", type=Path | None, default=None, help="report.json")
    sub.add_argument("--subset", action="store_true", help="score only the predicted images; labelled as such")
    sub.add_argument("--shuffled-control", action="store_true", help="also score captions moved to other images")
    sub.add_argument("--spice", action="store_true", help="also SPICE: downloads CoreNLP, needs Java 8")

    sub = add("inspect", "What an adapter folder is and what it needs.")
    sub.add_argument("adapter", type=Path, help="adapter folder")
    return parser


def _add_pack(sub: ArgumentParser) -> None:
    sub.add_argument("--images", type=Path, required=True, help="folder with the pictures")
    for name, text in (
        ("captions", "COCO captions JSON, plain or gzipped"),
        ("karpathy", "Karpathy's dataset_coco.json"),
        ("ids", 'JSON {"train": [ids], "test": [ids]}'),
        ("questions", "VQAv2 questions JSON"),
        ("answers", "VQAv2 annotations JSON"),
    ):
        sub.add_argument(f"--{name}", type=Path | None, default=None, help=text)
    sub.add_argument(
        "--split", type=str | None, default=None, help="train (with restval), train-only, val, test, ..."
    )
    sub.add_argument("--output", type=Path, required=True, help="folder for the shards")
    sub.add_argument("--name", type=str, default="coco", help="shards are called NAME-000000.tar")
    sub.add_argument("--samples-per-shard", type=int, default=1000, help="images in a shard")
    sub.add_argument("--max-size", type=int | None, default=None, help="re-encode to this shorter side in pixels")
    sub.add_argument("--allow-missing", action="store_true", help="finish although images cannot be used")
    sub.add_argument("--workers", type=int | None, default=None, help="processes; all cores unless given")


def _add_generation(sub: ArgumentParser) -> None:
    sub.add_argument("--adapter", type=Path | None, default=None, help="adapter folder; the shipped one unless given")
    sub.add_argument("--batch-size", type=int, default=8, help="images at a time")
    sub.add_argument("--prompt", type=str | None, default=None, help="text before the answer")
    sub.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    sub.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of the language model; auto: float32 on a CPU, so that batches change no caption",
    )
    sub.add_argument("--language", type=str | None, default=None, help="another place of the same language model")
    for item in dataclasses.fields(DecodingConfig):
        kind = type(item.default)
        name = "--" + item.name.replace("_", "-")
        if kind is bool:
            sub.add_argument(
                name, action="store_true", default=None, help="draw tokens instead of taking the likeliest"
            )
        else:
            sub.add_argument(name, type=kind | None, default=None, help="replaces the adapter's own")
