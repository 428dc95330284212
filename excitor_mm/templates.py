"""The words around what a user asks, and what the model writes: templates, and turns of a conversation.

In: turns. Out: the text before an answer, and the text of the answer. prompts.py makes token ids of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from excitor_mm.errors import ConfigError, DataError

PALETTE = "{palette}"
CAPTION = "{caption}"
"""Where a caption of the image stands: in training one of the sample's, later what the model itself writes first."""
CHAT = "chat"
"""The name that stands for the language model's own chat template."""
CAPTION_INSTRUCTION = "Generate caption of this image"
"""What asks for a caption where a template has a place for a question; the wording of LLaMA-Adapter."""

TEMPLATES = {
    "palette": "{palette}\nCaption:",
    "caption": "Caption:",
    "alpaca-caption": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nGenerate caption of this image\n\n### Response:"
    ),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{question}\n\n### Response:"
    ),
    "short-answer": "Question: {question}\nShort answer:",
    "palette-answer": "{question}\n{palette}\nAnswer:",
    "caption-answer": "{question}\nPicture: {caption}\nAnswer:",
    "plain": "{question}",
}
"""Named templates; `chat` stands beside them. The Alpaca wording is that of the LLaMA-Adapter recipe the paper builds
on; `plain` suits ScienceQA, whose formats say "Question:" and "Answer:" themselves."""

CONTEXT_TEMPLATES = {
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n{question}\n\n### Input:\n{context}"
        "\n\n### Response:"
    ),
}
"""Used instead where a turn has a context; other templates take it as a further line of the question."""


class Turn(NamedTuple):
    """What a user says, and what the model answers."""

    question: str = ""
    """Never shortened."""
    context: str = ""
    """A further line; its end is left out where a prompt is too long."""
    rest: str = ""
    """Lines behind the context, never shortened."""
    answer: str | None = None
    """None: still to be written."""
    caption: str = ""
    """Fills `{caption}`."""

    @property
    def text(self) -> str:
        """All lines of the user."""
        return "\n".join(part for part in self[:3] if part)


@dataclass(frozen=True)
class PromptFormat:
    """How turns become text: chosen in a run's configuration, stored in the adapter."""

    template: str
    """`chat`, a name in `TEMPLATES`, or a text with `{question}`, `{context}`, `{palette}` or `{caption}` in it."""
    palette: tuple[str, ...] = ()
    """Words that fill `{palette}`."""
    system: str = ""
    """What stands before the first turn; a chat template may have a text of its own, which this replaces."""

    @property
    def text(self) -> str:
        """The template."""
        return TEMPLATES.get(self.template, self.template)

    @property
    def describes(self) -> bool:
        """A question is asked with a caption of its image."""
        return CAPTION in self.text


def _fill(text: str, fields: Mapping[str, str], palette: Iterable[str]) -> str:
    """All places filled in one pass, so that braces in a user's text stay what they are."""
    words = " ".join(palette)
    if PALETTE in text and not words:
        raise ConfigError(f"The prompt template {text!r} holds {PALETTE}, but no palette words are given.")
    values = {"palette": words, **fields}
    return re.sub(r"\{(palette|question|context|caption)\}", lambda found: values.get(found[1], found[0]), text)


def prompt_text(form: PromptFormat, turn: Turn, first: bool) -> str:
    """A turn in a text template, up to the answer.

    Args:
        form: of the turn; any template but `chat`.
        turn: what fills it.
        first: later turns repeat the template's paragraphs from that with `{question}` on.

    Raises:
        ConfigError: a template without a place for the question, or without the palette's words.
    """
    text = form.text.rstrip(" ")
    fields = {"question": turn.text, "caption": turn.caption}
    if turn.context and form.template in CONTEXT_TEMPLATES:
        text = CONTEXT_TEMPLATES[form.template]
        fields = {"question": turn._replace(context="").text, "context": turn.context}
    place = text.find("{question}")
    if place < 0 and turn.text not in ("", CAPTION_INSTRUCTION):
        raise ConfigError(
            f"The prompt template {form.template!r} has no place for a question: take an adapter that was trained on "
            "questions, or a template with {question}."
        )
    if not first:
        start = text.rfind("\n\n", 0, max(place, 0))
        text = "\n\n" + (text[start + 2 :] if start >= 0 else text)
    elif form.system:
        text = f"{form.system}\n\n{text}"
    return _fill(text, fields, form.palette)


def worded(answer: str) -> str:
    """An answer without white space around it; DataError where nothing is left."""
    if not answer.strip():
        raise DataError("An answer is empty: leave the row out, or write the answer.")
    return answer.strip()
