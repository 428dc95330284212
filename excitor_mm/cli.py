"""The command line: `excitor-mm <command>`.

Heavy modules are imported inside the command that needs them, so that `--help` is instant. Results go to
stdout, progress to stderr. Errors of `ExcitorError` are one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.console import log
from excitor_mm.errors import ConfigError, ExcitorError

Command = Callable[[Any], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # decoding processes are forked
    parser, commands = build_parser()
    try:
        options = parser.parse_args(arguments)
        name = options.subcommand
        return commands[name](options[name])
    except ExcitorError as error:
        log(f"excitor-mm: {error}")
        return 2
    except KeyboardInterrupt:
        log("excitor-mm: interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout has gone
        sys.stderr.close()
        return 1


def run() -> None:
    """The console command."""
    sys.exit(main())


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


def build_parser() -> tuple[ArgumentParser, dict[str, Command]]:
    """The parser, and command name -> function."""
    parser = _Parser(prog="excitor-mm", description="Image captioning with LLaMA-Excitor.")
    subcommands = parser.add_subcommands()
    commands: dict[str, Command] = {}

    def add(name: str, help_text: str, run: Command) -> ArgumentParser:
        sub = _Parser(description=help_text)
        subcommands.add_subcommand(name, sub, help=help_text)
        commands[name] = run
        return sub

    add("fetch-defaults", "Download and convert the default frozen parts, once.", _fetch)

    sub = add("pack-coco", "COCO images and annotations to WebDataset shards.", _pack)
    _add_pack(sub)

    sub = add("shards", "Check shards: `excitor-mm shards check DIR`.", _check)
    sub.add_argument("action", choices=["check"], help="what to do")
    sub.add_argument("shards", type=str, help="folder, tar files as a brace list, or URL")
    sub.add_argument("--ranks", type=int, default=1, help="processes of the planned training")
    sub.add_argument("--workers", type=int, default=2, help="decoding processes per rank")
    sub.add_argument("--batch-size", type=int, default=32, help="images a step and rank")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")

    sub = add("train", "Train Excitor blocks on caption shards.", _train)
    sub.add_argument("--config", action="config", help="YAML file; see configs/")
    sub.add_class_arguments(RunConfig)
    sub.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    sub.add_argument("--overwrite", action="store_true", help="delete an older run in the same folder")
    sub.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")

    sub = add("caption", "Caption pictures.", _caption)
    sub.add_argument("paths", type=str, nargs="+", help="files, folders, globs, or - for paths on stdin")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_generation(sub)

    sub = add("predict", "Caption every sample of shards.", _predict)
    sub.add_argument("--shards", type=str, required=True, help="folder, brace list or URL")
    sub.add_argument("--output", type=Path, required=True, help="predictions.jsonl")
    sub.add_argument("--workers", type=int, default=2, help="decoding processes")
    sub.add_argument("--overwrite", action="store_true", help="start anew")
    _add_generation(sub)

    sub = add("evaluate", "Score predictions: `excitor-mm evaluate captions ...`.", _evaluate)
    sub.add_argument("task", choices=["captions"], help="what was predicted")
    sub.add_argument("--predictions", type=Path, required=True, help="predictions.jsonl or COCO results")
    sub.add_argument("--references", type=str, required=True, help="shards, COCO annotations or Karpathy's file")
    sub.add_argument("--split", type=str | None, default=None, help="of Karpathy's file or of --ids")
    sub.add_argument("--ids", type=Path | None, default=None, help="file that names the images that count")
    sub.add_argument("--output", type=Path | None, default=None, help="report.json")
    sub.add_argument("--subset", action="store_true", help="score only the predicted images; labelled as such")
    sub.add_argument("--shuffled-control", action="store_true", help="also score captions moved to other images")
    sub.add_argument("--spice", action="store_true", help="also SPICE: downloads CoreNLP, needs Java 8")

    sub = add("inspect", "What an adapter folder is and what it needs.", _inspect)
    sub.add_argument("adapter", type=Path, help="adapter folder")
    return parser, commands


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


def _load(options: Namespace) -> tuple[Any, Path, DecodingConfig]:
    """Model, adapter folder, and the adapter's decoding with the options laid over it."""
    from excitor_mm.adapter import load_config
    from excitor_mm.model import ExcitorModel

    folder = options.adapter or shipped_adapter()
    config = load_config(folder)
    given = {f.name: options[f.name] for f in dataclasses.fields(DecodingConfig) if options[f.name] is not None}
    language = dataclasses.replace(config.language, path=options.language) if options.language else None
    model = ExcitorModel.from_pretrained(folder, language=language, device=options.device)
    return model, folder, dataclasses.replace(config.decoding, **given)


def shipped_adapter() -> Path:
    """The adapter that comes with the repository."""
    folder = Path(__file__).resolve().parent.parent / "data" / "adapters" / "coco-small"
    if not folder.is_dir():
        raise ConfigError("No adapter is given and none is shipped with this installation: pass --adapter FOLDER.")
    return folder


def _fetch(options: Namespace) -> int:
    from excitor_mm.defaults.fetch import fetch_defaults

    for name, path in fetch_defaults().items():
        print(f"{name}\t{path}")
    return 0


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


def _check(options: Namespace) -> int:
    from excitor_mm.data.check import check_shards, format_check

    check = check_shards(options.shards, ranks=options.ranks, workers=options.workers, batch_size=options.batch_size)
    print(json.dumps(dataclasses.asdict(check)) if options.json else format_check(check))
    return 0 if check.ok else 1


def _train(options: Namespace) -> int:
    config = _run_config(options)
    if options.dry_run:
        from excitor_mm.preflight import preflight

        print(preflight(config))
        return 0
    from excitor_mm.train import train

    print(train(config, resume=options.resume, overwrite=options.overwrite))
    return 0


def _run_config(options: Namespace) -> RunConfig:
    from excitor_mm.config import from_dict

    names = [item.name for item in dataclasses.fields(RunConfig)]
    plain = options.as_dict() if hasattr(options, "as_dict") else dict(options)
    values = {name: plain[name] for name in names}
    return from_dict(RunConfig, json.loads(json.dumps(values, default=dataclasses.asdict)))


def _caption(options: Namespace) -> int:
    from excitor_mm.generate import caption_files, find_images

    paths = find_images(options.paths, sys.stdin)
    model, _, decoding = _load(options)
    failures = []
    for result in caption_files(
        model, paths, batch_size=options.batch_size, prompt=options.prompt, decoding=decoding
    ):
        if result.caption is None:
            failures.append(result)
        elif not options.json:
            print(result.caption if len(paths) == 1 else f"{result.path}\t{result.caption}", flush=True)
        if options.json:
            print(json.dumps(result._asdict(), ensure_ascii=False), flush=True)
    for failure in failures:
        log(f"excitor-mm: {failure.error}")
    return 2 if failures else 0


def _predict(options: Namespace) -> int:
    from excitor_mm.generate import predict

    model, folder, decoding = _load(options)
    count = predict(
        model,
        options.shards,
        options.output,
        adapter=folder.name,
        batch_size=options.batch_size,
        workers=options.workers,
        prompt=options.prompt,
        decoding=decoding,
        overwrite=options.overwrite,
    )
    print(f"{count} predictions in {options.output}")
    return 0


def _evaluate(options: Namespace) -> int:
    from excitor_mm.evaluate import evaluate_captions, format_scores
    from excitor_mm.metrics.captions import METRICS

    report = evaluate_captions(
        options.predictions,
        options.references,
        output=options.output,
        split=options.split,
        ids=options.ids,
        metrics=(*METRICS, "SPICE") if options.spice else METRICS,
        subset=options.subset,
        shuffled_control=options.shuffled_control,
    )
    print(format_scores(report))
    return 1 if report["failed"] else 0


def _inspect(options: Namespace) -> int:
    from excitor_mm.describe import describe

    print(describe(options.adapter))
    return 0
