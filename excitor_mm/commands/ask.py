"""ask: a question, a conversation, or a file of questions."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import generation_options, load_model
from excitor_mm.console import log
from excitor_mm.errors import ConfigError
from excitor_mm.options import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("words", type=str, nargs="*", help="[IMAGE] QUESTION; with --repl: [IMAGE]")
    parser.add_argument("--context", type=str, default="", help="what the question is about")
    parser.add_argument("--choices", type=str, nargs="+", default=[], help="one of these texts is the answer")
    parser.add_argument("--task", type=str | None, default=None, help="one of the adapter's, where it has several")
    parser.add_argument("--system", type=str, default="", help="what the model is told before the conversation")
    parser.add_argument("--base", action="store_true", help="the language model without the adapter, without images")
    parser.add_argument("--repl", action="store_true", help="ask again and again; earlier turns are remembered")
    parser.add_argument(
        "--questions", type=Path | None, default=None, help="VQAv2 questions, problems.json, or rows; needs --output"
    )
    parser.add_argument("--images", type=Path | None, default=None, help="folder of the images for --questions")
    parser.add_argument("--output", type=Path | None, default=None, help="predictions.jsonl, for --questions")
    parser.add_argument("--overwrite", action="store_true", help="answer --questions anew")
    parser.add_argument(
        "--json",
        action="store_true",
        help="the answer as a JSON object, with caption and scores of choices where there are any",
    )
    generation_options(parser)


def _ask(options: Namespace) -> int:
    _check(options)
    if options.questions is not None:
        return _ask_file(options)

    from excitor_mm.chat import Chat

    words = list(options.words)
    question = "" if options.repl else words.pop()
    model, _, decoding = load_model(options)
    with model.base_model() if options.base else contextlib.nullcontext():
        chat = Chat(
            model,
            words[0] if words else None,
            task=options.task,
            base=options.base,
            template=options.prompt,
            system=options.system,
            decoding=decoding,
        )
        if not options.repl:
            said = chat.say(question, context=options.context, choices=options.choices)
            facts: dict[str, Any] = {"answer": said.text}
            if said.caption:
                facts["caption"] = said.caption
            if said.log_likelihoods:
                facts["log_likelihoods"] = dict(zip(options.choices, said.log_likelihoods, strict=True))
            print(json.dumps(facts, ensure_ascii=False) if options.json else said.text)
            return 0
        for line in _lines():
            print(chat.say(line).text, flush=True)
    return 0


def _ask_file(options: Namespace) -> int:
    from excitor_mm.chat import choose_task
    from excitor_mm.predict import predict
    from excitor_mm.queries import read_queries

    model, folder, decoding = load_model(options)
    task = choose_task(model, options.task, has_image=options.images is not None)
    count = predict(
        model,
        read_queries(options.questions, options.images, model.task_format(task)),
        options.output,
        adapter=folder.name,
        source=options.questions.name,
        task=task,
        batch_size=options.batch_size,
        prompt=options.prompt,
        decoding=decoding,
        base=options.base,
        overwrite=options.overwrite,
    )
    print(f"{count} answers in {options.output}")
    return 0


def _check(options: Namespace) -> None:
    """Options that exclude or need each other."""
    if (options.questions is None) != (options.output is None):
        raise ConfigError("--questions FILE and --output FILE go together: give both, or a question alone.")
    expected = (0, 0) if options.questions else (0, 1) if options.repl else (1, 2)
    if not expected[0] <= len(options.words) <= expected[1]:
        form = "no words" if options.questions else "[IMAGE] --repl" if options.repl else "[IMAGE] QUESTION"
        raise ConfigError(f"ask got {len(options.words)} words, expected {form}: put the question in quotes.")
    if options.base and (options.images is not None or len(options.words) == (1 if options.repl else 2)):
        raise ConfigError("--base is the language model alone, which sees no image: leave the image out.")


def _lines() -> Iterator[str]:
    """What a person types, or the lines of a pipe, until the end of the input."""
    shown = sys.stdin.isatty()
    if shown:
        log("Ctrl-D ends.")
    while True:
        if shown:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


COMMANDS = (Command("ask", "Ask about an image, or without one; once, in turns, or from a file.", _options, _ask),)
