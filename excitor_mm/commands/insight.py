"""explain and forgetting: what training did to an answer, and to the language model."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import generation_options, load_adapter, load_model, model_options, shipped
from excitor_mm.options import Command
from excitor_mm.ranges import PositiveInt


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument("image", type=str, help="a picture file")
    parser.add_argument("--question", type=str | None, default=None, help="for an adapter that answers questions")
    parser.add_argument("--answer", type=str | None, default=None, help="explain this text, not the model's own")
    parser.add_argument("--output", type=Path, required=True, help="folder for explanation.png, .json and .npz")
    generation_options(parser)


def _explain(options: Namespace) -> int:
    from excitor_mm.explain import explain, summary, write_explanation

    model, _, decoding = load_model(options)
    found = explain(
        model,
        options.image,
        question=options.question,
        prompt=options.prompt,
        answer=options.answer,
        decoding=decoding,
    )
    write_explanation(found, options.output)
    print("moved  patches  word")
    for word, patches in zip(summary(found)["words"], found.maps.sum(axis=(1, 2)), strict=True):
        print(f"{word['shift']:5.1%}  {patches:7.1%}  {word['word']}")
    print(options.output / "explanation.png")
    return 0


def _forgetting_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder for report.json and mmlu.jsonl")
    parser.add_argument(
        "--text", type=Path | None, default=None, help="for the perplexity; the shipped one if not given"
    )
    parser.add_argument("--mmlu", type=Path | None, default=None, help="MMLU's CSV files: a folder or a tar file")
    parser.add_argument(
        "--questions", type=PositiveInt | None, default=None, help="so many of each subject, always the same"
    )
    parser.add_argument("--image", type=str | None, default=None, help="a picture that the tuned model is shown")
    parser.add_argument("--overwrite", action="store_true", help="start anew")
    model_options(parser)


def _forgetting(options: Namespace) -> int:
    from excitor_mm.forgetting import format_forgetting, measure_forgetting

    model, folder = load_adapter(options)
    report = measure_forgetting(
        model,
        options.text or shipped("text/everyday.txt", "--text FILE"),
        options.output,
        adapter=folder.name,
        mmlu=options.mmlu,
        per_subject=options.questions,
        image=options.image,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
    )
    print(format_forgetting(report))
    return 0


COMMANDS = (
    Command("explain", "What the Excitor did to each word of an answer.", _explain_options, _explain),
    Command("forgetting", "Base against tuned model on text: MMLU, perplexity.", _forgetting_options, _forgetting),
)
