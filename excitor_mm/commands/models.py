"""train, predict, inspect; and the options of all commands that generate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.errors import ConfigError
from excitor_mm.options import Command
from excitor_mm.ranges import NonNegativeInt, PositiveInt


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file; see configs/")
    parser.add_class_arguments(RunConfig)
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete an older run in the same folder")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")


def _train(options: Namespace) -> int:
    config = run_config(options)
    if options.dry_run:
        from excitor_mm.preflight import preflight

        print(preflight(config, resume=options.resume, overwrite=options.overwrite))
        return 0
    from excitor_mm.train import train

    print(train(config, resume=options.resume, overwrite=options.overwrite))
    return 0


def run_config(options: Namespace) -> RunConfig:
    """The whole configuration that a command's options spell out."""
    from excitor_mm.config import from_dict

    names = [item.name for item in dataclasses.fields(RunConfig)]
    plain = options.as_dict() if hasattr(options, "as_dict") else dict(options)
    values = {name: plain[name] for name in names}
    return from_dict(RunConfig, json.loads(json.dumps(values, default=dataclasses.asdict)))


def model_options(parser: ArgumentParser) -> None:
    """Which adapter, and on which device."""
    parser.add_argument(
        "--adapter", type=Path | None, default=None, help="adapter folder; the shipped one unless given"
    )
    parser.add_argument("--batch-size", type=PositiveInt, default=8, help="images or texts at a time")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of the language model; auto: float32 on a CPU, so that batches change no caption",
    )
    parser.add_argument("--language", type=str | None, default=None, help="another place of the same language model")


def generation_options(parser: ArgumentParser) -> None:
    """Which adapter, on which device, and how it writes."""
    model_options(parser)
    parser.add_argument("--prompt", type=str | None, default=None, help="text before the answer")
    for key, kind in get_type_hints(DecodingConfig).items():
        name = "--" + key.replace("_", "-")
        if kind is bool:
            parser.add_argument(
                name, action="store_true", default=None, help="draw tokens instead of taking the likeliest"
            )
        else:
            parser.add_argument(name, type=kind | None, default=None, help="replaces the adapter's own")


def load_adapter(options: Namespace) -> tuple[Any, Path]:
    """Model and adapter folder of `model_options`."""
    from excitor_mm.model import ExcitorModel

    folder = options.adapter or shipped("adapters/coco-small", "--adapter FOLDER")
    model = ExcitorModel.from_pretrained(
        folder, language=options.language, device=options.device, dtype=options.dtype
    )
    return model, folder


def load_model(options: Namespace) -> tuple[Any, Path, DecodingConfig]:
    """Model, adapter folder, and the adapter's decoding with the options laid over it."""
    model, folder = load_adapter(options)
    given = {f.name: options[f.name] for f in dataclasses.fields(DecodingConfig) if options[f.name] is not None}
    return model, folder, dataclasses.replace(model.config.decoding, **given)


def shipped(name: str, option: str) -> Path:
    """A part of the repository's data folder, e.g. the adapter that comes with it."""
    path = Path(__file__).resolve().parents[2] / "data" / name
    if not path.exists():
        raise ConfigError(f"data/{name} is not part of this installation: pass {option}.")
    return path


def predict_options(parser: ArgumentParser) -> None:
    """Which shards, and how many processes read them."""
    parser.add_argument("--shards", type=str, required=True, help="folder, brace list or URL")
    parser.add_argument("--workers", type=NonNegativeInt, default=2, help="decoding processes")
    parser.add_argument("--overwrite", action="store_true", help="start anew")
    generation_options(parser)


def _predict_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="predictions.jsonl")
    parser.add_argument("--task", type=str | None, default=None, help="one of the adapter's, where it has several")
    parser.add_argument("--base", action="store_true", help="the language model without the adapter, without images")
    parser.add_argument("--other-images", action="store_true", help="the control: each sample with another's image")
    predict_options(parser)


def run_predict(options: Namespace, output: Path) -> int:
    """Predict as the options say; returns the number of predictions."""
    from excitor_mm.predict import predict

    model, folder, decoding = load_model(options)
    return predict(
        model,
        options.shards,
        output,
        adapter=folder.name,
        batch_size=options.batch_size,
        workers=options.workers,
        prompt=options.prompt,
        decoding=decoding,
        task=options.get("task"),
        base=bool(options.get("base")),
        other_images=bool(options.get("other_images")),
        overwrite=options.overwrite,
    )


def _predict(options: Namespace) -> int:
    print(f"{run_predict(options, options.output)} predictions in {options.output}")
    return 0


def _inspect_options(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path, help="adapter folder")


def _inspect(options: Namespace) -> int:
    from excitor_mm.describe import describe

    print(describe(options.adapter))
    return 0


COMMANDS = (
    Command("train", "Train Excitor blocks on caption shards.", _train_options, _train),
    Command("predict", "Caption every sample of shards.", _predict_options, _predict),
    Command("inspect", "What an adapter folder is and what it needs.", _inspect_options, _inspect),
)
