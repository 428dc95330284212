"""The server answers what `answer` answers, asked with the model's own caption or not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from excitor_mm.chat import Chat
from excitor_mm.config import DecodingConfig, Prompts
from excitor_mm.model import ExcitorModel
from excitor_mm.serve.engine import Engine
from tests.conftest import jpeg

TEMPLATES = {"vqa": "{question}\nPicture: {caption}\nAnswer:", "caption": "A picture:"}


def test_an_answer_is_heard_without_the_caption_it_was_asked_with(tiny_adapter: Path) -> None:
    model = ExcitorModel.from_pretrained(tiny_adapter, device="cpu")
    model.config = dataclasses.replace(model.config, prompts=Prompts(TEMPLATES))
    decoding = DecodingConfig(beams=1, max_new_tokens=16, min_new_tokens=16)
    chat = Chat(model, jpeg("red"), decoding=decoding)
    expected = [chat.say(question) for question in ("Which colour?", "Why?")]
    assert expected[0].caption
    heard: list[str] = []
    engine = Engine(model, "tiny")
    try:
        first = engine.ask(jpeg("red"), "Which colour?", decoding=decoding, listener=heard.append).result(60)
        history = [("Which colour?", first)]
        second = engine.ask(jpeg("red"), "Why?", history, decoding=decoding).result(60)
    finally:
        engine.close()
    assert [first, second] == [said.text for said in expected]
    assert heard
    assert all(first.startswith(text) for text in heard)
