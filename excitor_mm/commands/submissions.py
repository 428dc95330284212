"""submit: files for the servers of COCO, VQAv2 and VizWiz."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.console import log
from excitor_mm.errors import ConfigError
from excitor_mm.options import Command


def _submit_coco_options(parser: ArgumentParser) -> None:
    parser.add_argument("--val", type=Path | None, default=None, help="predictions for val2014")
    parser.add_argument("--test", type=Path | None, default=None, help="predictions for test2014")
    parser.add_argument("--val-images", type=Path, required=True, help="captions_val2014.json")
    parser.add_argument("--test-images", type=Path, required=True, help="image_info_test2014.json")
    _writing_options(parser)


def _writing_options(parser: ArgumentParser) -> None:
    parser.add_argument("--algorithm", type=str | None, default=None, help="name of the method, in the file's name")
    parser.add_argument("--output", type=Path | None, default=None, help="folder for the file")
    parser.add_argument("--fill-missing", action="store_true", help="an empty text where there is no prediction")
    parser.add_argument("--validate", type=Path | None, default=None, help="check this file and write none")


def _submit(
    options: Namespace, needed: tuple[str, ...], check: Callable[[], list[str]], write: Callable[[], Path]
) -> int:
    """Check --validate, or write to --output."""
    if options.validate is not None:
        problems = check()
        for problem in problems:
            log(f"excitor-mm: {problem}")
        if not problems:
            print(f"{options.validate} would be accepted")
        return 1 if problems else 0
    if missing := [name for name in (*needed, "output") if options[name] is None]:
        raise ConfigError(f"--{missing[0]} is not given: it is needed to write a file; --validate FILE checks one.")
    print(write())
    return 0


def _submit_coco(options: Namespace) -> int:
    from excitor_mm.submit import check_coco, write_coco

    images = options.val_images, options.test_images
    return _submit(
        options,
        ("val", "test", "algorithm"),
        lambda: check_coco(options.validate, *images),
        lambda: write_coco(
            options.val, options.test, *images, options.algorithm, options.output, options.fill_missing
        ),
    )


def _answers_options(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path | None, default=None, help="predictions.jsonl or a results list")
    parser.add_argument("--questions", type=Path, required=True, help="the official questions file")
    _writing_options(parser)


def _submit_vqa(options: Namespace) -> int:
    from excitor_mm.submit import check_vqa, write_vqa

    return _submit(
        options,
        ("predictions", "algorithm"),
        lambda: check_vqa(options.validate, options.questions),
        lambda: write_vqa(
            options.predictions, options.questions, options.algorithm, options.output, options.fill_missing
        ),
    )


def _submit_vizwiz(options: Namespace) -> int:
    from excitor_mm.submit import check_vizwiz, write_vizwiz

    return _submit(
        options,
        ("predictions",),
        lambda: check_vizwiz(options.validate, options.questions),
        lambda: write_vizwiz(options.predictions, options.questions, options.output, options.fill_missing),
    )


COMMANDS = (
    Command("submit coco", "The zip for the COCO captions server.", _submit_coco_options, _submit_coco),
    Command("submit vqa", "The results file for VQAv2 on EvalAI.", _answers_options, _submit_vqa),
    Command("submit vizwiz", "The results file for VizWiz.", _answers_options, _submit_vizwiz),
)
