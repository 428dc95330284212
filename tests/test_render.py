"""One function makes prompts for training and inference; answers are found in it, and only contexts are shortened."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from excitor_mm.errors import ConfigError, DataError
from excitor_mm.prompts import TooLong, render
from excitor_mm.templates import TEMPLATES, PromptFormat, Turn

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
DROPS_SYSTEM = CHAT.replace("for m in messages", "for m in messages if m['role'] != 'system'")
FORGETS = CHAT.replace("for m in messages", "for m in messages[-2:]")
TURNS = (
    Turn("What is it?", "It is {question} or {palette}.", answer="A red square."),
    Turn("Where?", answer="Left.\n\n  Or right.", caption="A circle\nhere"),
    Turn("Why {context}?", "None.", "Say why.", answer="No reason"),
)
QUESTIONS = ["chat", *(name for name, text in TEMPLATES.items() if "{question}" in text)]


@pytest.fixture(scope="module")
def tokenizer(language_folder: Path):
    found = AutoTokenizer.from_pretrained(language_folder)
    found.chat_template = CHAT
    return found


def form(template: str, system: str = "") -> PromptFormat:
    return PromptFormat(template, ("red", "square"), system)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("template", QUESTIONS)
def test_training_reads_what_inference_reads(tokenizer, template: str, system: str) -> None:
    """Up to each answer the ids are those of the open conversation, whatever follows."""
    whole = render(tokenizer, form(template, system), TURNS)
    assert len(whole.answers) == len(TURNS)
    for number, (start, end) in enumerate(whole.answers):
        asked = (*TURNS[:number], TURNS[number]._replace(answer=None))
        assert render(tokenizer, form(template, system), asked).ids == whole.ids[:start]
        assert tokenizer.decode(whole.ids[start : end - 1]).strip() == TURNS[number].answer
        assert whole.ids[end - 1] == tokenizer.eos_token_id
    text = tokenizer.decode(whole.ids)
    assert "It is {question} or {palette}." in text
    assert "Why {context}?" in text
    assert text.count(system or "red") >= 1 or template in ("chat", "alpaca", "plain", "short-answer")


@settings(deadline=None, max_examples=30)
@given(limit=st.integers(20, 200), words=st.integers(0, 60))
def test_only_the_context_is_shortened(tokenizer, limit: int, words: int) -> None:
    turn = Turn("What is it?", " ".join(f"w{n}" for n in range(words)), "Options: (A) x", answer="It is x.")
    bare = len(render(tokenizer, form("plain"), [turn._replace(context="")]).ids)
    if bare > limit:
        with pytest.raises(TooLong, match=f"at most {limit}"):
            render(tokenizer, form("plain"), [turn], limit)
        return
    found, full = render(tokenizer, form("plain"), [turn], limit), render(tokenizer, form("plain"), [turn])
    assert len(found.ids) <= limit
    assert (found.cut == 0) == (len(full.ids) <= limit)
    text = tokenizer.decode(found.ids)
    assert text.startswith("What is it?\n")
    assert "Options: (A) x It is x." in text
    kept = text.split("\n")[1] if text.count("\n") > 1 else ""
    assert turn.context.startswith(kept)


@pytest.mark.parametrize(
    ("template", "system", "sentence"),
    [
        (None, "", "no chat template"),
        (NO_SYSTEM, "Be brief.", "refuses these turns"),
        (DROPS_SYSTEM, "Be brief.", "no system role"),
        (FORGETS, "", "rewrites earlier turns"),
    ],
)
def test_chat_templates_that_do_not_fit(language_folder: Path, template: str, system: str, sentence: str) -> None:
    other = AutoTokenizer.from_pretrained(language_folder)
    other.chat_template = template
    with pytest.raises(ConfigError, match=sentence):
        render(other, form("chat", system), TURNS)


def test_what_cannot_be_asked_or_learnt(tokenizer) -> None:
    with pytest.raises(ConfigError, match="no place for a question"):
        render(tokenizer, form("palette"), [Turn("What is it?")])
    for template in ("plain", "chat"):
        with pytest.raises(DataError, match="empty"):
            render(tokenizer, form(template), [Turn("What is it?", answer=" \n")])
    with pytest.raises(DataError, match="no token that says anything"):
        render(tokenizer, form("plain"), [Turn("What is it?", answer="</s>")])
