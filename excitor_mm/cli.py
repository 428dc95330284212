"""The command line: `excitor-mm <command>`.

Heavy modules are imported inside the command that needs them, so that `--help` is instant. Results go to
stdout, progress to stderr. Errors of `ExcitorError` are one sentence on stderr and exit status 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.console import log
from excitor_mm.errors import ConfigError, ExcitorError
from excitor_mm.options import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # decoding processes are forked
    try:
        options = build_parser().parse_args(arguments)
        return COMMANDS[options.subcommand](options[options.subcommand])
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


def _load(options: Namespace) -> tuple[Any, Path, DecodingConfig]:
    """Model, adapter folder, and the adapter's decoding with the options laid over it."""
    from excitor_mm.adapter import load_config
    from excitor_mm.model import ExcitorModel

    folder = options.adapter or shipped_adapter()
    config = load_config(folder)
    given = {f.name: options[f.name] for f in dataclasses.fields(DecodingConfig) if options[f.name] is not None}
    model = ExcitorModel.from_pretrained(
        folder, language=options.language, device=options.device, dtype=options.dtype
    )
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


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "fetch-defaults": _fetch,
    "pack-coco": _pack,
    "shards": _check,
    "train": _train,
    "caption": _caption,
    "predict": _predict,
    "evaluate": _evaluate,
    "inspect": _inspect,
}
"""Every command of `build_parser`."""
