"""explain: what the Excitor did."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import generation_options, load_model
from excitor_mm.options import Command


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument("image", type=str, help="a picture file")
    parser.add_argument("--answer", type=str | None, default=None, help="explain this text, not the model's own")
    parser.add_argument("--output", type=Path, required=True, help="folder for explanation.png, .json and .npz")
    generation_options(parser)


def _explain(options: Namespace) -> int:
    from excitor_mm.explain import explain, summary, write_explanation

    model, _, decoding = load_model(options)
    found = explain(model, options.image, prompt=options.prompt, answer=options.answer, decoding=decoding)
    write_explanation(found, options.output)
    print("moved  patches  word")
    for word, patches in zip(summary(found)["words"], found.maps.sum(axis=(1, 2)), strict=True):
        print(f"{word['shift']:5.1%}  {patches:7.1%}  {word['word']}")
    print(options.output / "explanation.png")
    return 0


COMMANDS = (Command("explain", "What the Excitor did to each word of an answer.", _explain_options, _explain),)
