"""The web page: captions word by word, questions, heat maps, two adapters side by side."""

from __future__ import annotations

import dataclasses
import functools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gradio as gr

from excitor_mm.config import DecodingConfig
from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.serve.batching import Busy
from excitor_mm.serve.engine import Engine, Listener
from excitor_mm.serve.heat import heat_html

THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
"""Fonts of the machine: Gradio's own themes fetch theirs from elsewhere."""
ANSWERING = 32  # clients that are served at once; more wait in Gradio's queue


def make_page(engines: Mapping[str, Engine], examples: Sequence[Path]) -> gr.Blocks:
    """The page; `examples` are pictures to try."""
    names = list(engines)
    default = engines[names[0]].model.config.decoding
    with gr.Blocks(title="excitor-mm", analytics_enabled=False) as page:
        gr.Markdown("# excitor-mm\nDrop, paste or choose a picture. Answers can be wrong: they are not a source.")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="Picture", sources=["upload", "clipboard"], elem_id="picture", height=320)
                # The file itself, so that what cannot be read is explained by our own sentence.
                picture.preprocess = _path_of  # type: ignore[method-assign]
                with gr.Row():
                    first = gr.Dropdown(names, value=names[0], label="Adapter")
                    second = gr.Dropdown(["none", *names], value="none", label="Compare with")
                options = _decoding_options(default)
                write = gr.Button("Caption", variant="primary", elem_id="write")
            with gr.Column():
                captions = [gr.Textbox(label="Caption", elem_id="caption", interactive=False)]
                captions.append(gr.Textbox(label="Caption of the other adapter", elem_id="other", interactive=False))
                look = gr.Button("Where did it look?", elem_id="look")
                heat = gr.HTML(label="Hover a word", elem_id="heat")
        chat = gr.Chatbot(label="Questions about the picture", elem_id="chat", height=240)
        question = gr.Textbox(label="Ask", placeholder="What colour is the bus?", elem_id="question", max_length=4000)

        def caption_both(source: str | None, one: str, other: str, *chosen: Any) -> Iterator[Any]:
            decoding = _decoding(default, chosen)
            chosen_engines = [engines[name] for name in (one, other) if name != "none"]
            starts = [
                lambda hear, engine=engine: engine.caption(_needed(source), decoding, hear)
                for engine in chosen_engines
            ]
            for texts in _streams(starts):
                yield [*texts, *[""] * (2 - len(texts))]

        def explain_caption(source: str | None, one: str, text: str) -> str:
            found = _told(lambda: engines[one].explain(_needed(source), text or None).result())
            return heat_html(found)

        def answer(asked: str, talk: list[dict[str, Any]], source: str | None, one: str, *chosen: Any) -> Iterator:
            history, decoding, engine = _pairs(talk), _decoding(default, chosen), engines[one]
            shown = [*talk, {"role": "user", "content": asked}]
            start = [
                lambda hear: engine.ask(
                    _needed(source) if source else None, asked, history, decoding=decoding, listener=hear
                )
            ]
            for (text,) in _streams(start):
                yield [*shown, {"role": "assistant", "content": text}], ""

        write.click(caption_both, [picture, first, second, *options], captions, concurrency_limit=ANSWERING)
        look.click(explain_caption, [picture, first, captions[0]], heat, concurrency_limit=ANSWERING)
        question.submit(
            answer, [question, chat, picture, first, *options], [chat, question], concurrency_limit=ANSWERING
        )
        picture.change(lambda: ("", "", "", []), None, [*captions, heat, chat])
        if examples:
            gr.Examples([[str(path)] for path in examples], [picture], cache_examples=False, label="Examples")
    return page


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _decoding_options(default: DecodingConfig) -> list[Any]:
    """The controls, in the order that `_decoding` takes them."""
    with gr.Accordion("Decoding", open=False):
        return [
            gr.Slider(1, 8, 1, step=1, label="Beams (1: word by word)", elem_id="beams"),
            gr.Slider(1, 128, int(default.max_new_tokens), step=1, label="Most tokens"),
            gr.Checkbox(default.sample, label="Draw words by chance"),
            gr.Slider(0.1, 2, float(default.temperature), label="Temperature"),
            gr.Slider(0.05, 1, float(default.top_p), label="Nucleus (top p)"),
        ]


def _decoding(default: DecodingConfig, chosen: Sequence[Any]) -> DecodingConfig:
    beams, longest, sample, temperature, top_p = chosen
    sizes = {"beams": 1 if sample else int(beams), "max_new_tokens": int(longest)}
    return dataclasses.replace(default, **sizes, sample=sample, temperature=temperature, top_p=top_p)


def _needed(source: str | None) -> bytes:
    if source is None:
        raise DataError("There is no picture yet: drop, paste or choose one.")
    return Path(source).read_bytes()


def _told(call: Callable[[], Any]) -> Any:
    """What goes wrong, as a message on the page."""
    try:
        return call()
    except (ExcitorError, Busy) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _streams(starts: Sequence[Callable[[Listener], Future[str]]]) -> Iterator[list[str]]:
    """Several texts as they grow side by side."""
    heard: queue.Queue[tuple[int, str | None]] = queue.Queue()
    texts = [""] * len(starts)
    futures = []
    for index, start in enumerate(starts):
        hear = functools.partial(_put, heard, index)
        futures.append(_told(functools.partial(start, hear)))
        futures[-1].add_done_callback(lambda _, hear=hear: hear(None))
    running = len(futures)
    while running:
        index, text = heard.get()
        if text is None:
            running -= 1
        elif text != texts[index]:
            texts[index] = text
            yield list(texts)
    yield _told(lambda: [future.result() for future in futures])


def _put(heard: queue.Queue[tuple[int, str | None]], index: int, text: str | None) -> None:
    heard.put((index, text))


def _pairs(talk: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Gradio's messages as questions with their answers."""
    texts = [_text(message["content"]) for message in talk]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return str(content)
