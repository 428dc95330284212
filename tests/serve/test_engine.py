"""The server answers what `answer` answers, a caption before the answer included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from excitor_mm.chat import Chat
from excitor_mm.config import DecodingConfig, Prompts
from excitor_mm.model import ExcitorModel
from excitor_mm.serve.engine import Engine
from tests.conftest import jpeg

PROMPT = "{question}\nPicture:"


@pytest.fixture
def model(tiny_adapter: Path) -> ExcitorModel:
    return ExcitorModel.from_pretrained(tiny_adapter, device="cpu")


def with_template(model: ExcitorModel, template: str) -> ExcitorModel:
    model.config = dataclasses.replace(model.config, prompts=Prompts({"vqa": template}))
    return model


def test_a_caption_before_the_answer_is_neither_given_nor_heard(model: ExcitorModel) -> None:
    """What leads to the answer here is a part of what the model writes anyway, so the text before it is the caption."""
    decoding = DecodingConfig(beams=1, max_new_tokens=16, min_new_tokens=16)
    said = Chat(with_template(model, PROMPT), jpeg("red"), decoding=decoding).say("Which colour?").text
    lead = said[2 : len(said) // 2].split()[0]
    expected = said.partition(lead)[2].strip()
    assert expected
    heard: list[str] = []
    engine = Engine(with_template(model, f"{PROMPT} {{caption}} {lead}"), "tiny")
    try:
        found = engine.ask(jpeg("red"), "Which colour?", decoding=decoding, listener=heard.append).result(60)
    finally:
        engine.close()
    assert found == expected
    assert heard
    assert all(expected.startswith(text) for text in heard)
    assert Chat(model, jpeg("red"), decoding=decoding).say("Which colour?").text == expected
