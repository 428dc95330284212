"""Answers to conversations: written token by token, or the likeliest of given choices.

`predict`, validation and `ask` all answer here; what stands around a question comes from the adapter. Where that
holds a caption, the model writes one first, once for each image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excitor_mm.config import DecodingConfig
from excitor_mm.console import log
from excitor_mm.data.pipeline import Example, TaskFormat, collate, stack_pixels
from excitor_mm.data.tasks import SHORT_TASKS, Conversation
from excitor_mm.model import ExcitorModel
from excitor_mm.prompts import Rendered, TooLong
from excitor_mm.templates import CAPTION_INSTRUCTION, Turn


class Asked(NamedTuple):
    """A conversation whose last turn waits for its answer."""

    conversation: Conversation
    pixels: list[Tensor] | None
    """One [3, S, S], or its tokens [N, width], for each encoder; shared by all questions about an image. None without
    one."""


class Answer(NamedTuple):
    """What the model says."""

    text: str
    """Empty where the question was too long."""
    log_likelihoods: tuple[float, ...] = ()
    """Of the choices; the text is the likeliest."""
    shortened: bool = False
    """The context was too long, and its end was left out."""
    caption: str = ""
    """With which the question was asked, where the prompt template holds `{caption}`."""


def answer(
    model: ExcitorModel, tasks: TaskFormat, asked: Sequence[Asked], decoding: DecodingConfig | None = None
) -> list[Answer]:
    """Answer a batch, in order. An image is encoded once, however many questions are about it.

    Args:
        model: in eval mode.
        tasks: the prompts; see `ExcitorModel.task_format`.
        asked: the batch; what has choices is scored, all else is generated.
        decoding: replaces the adapter's own.
    """
    decoding = decoding or model.config.decoding
    if tasks.form.describes:
        asked = describe(model, asked, decoding)
    answers: dict[int, Answer] = {}
    open_rows: list[tuple[int, Rendered]] = []
    choice_rows: list[tuple[int, Rendered]] = []
    for index, (conversation, _) in enumerate(asked):
        try:
            if conversation.choices:
                choice_rows += [(index, text) for text in _with_choices(model, tasks, conversation)]
            else:
                room = decoding.max_new_tokens
                text = tasks.render(model.processor.tokenizer, conversation.turns, conversation.system, room)
                open_rows.append((index, text))
        except TooLong as error:
            log(f"question {conversation.id} gets no answer: {error}")
            answers[index] = Answer("")
    if open_rows:
        inputs = model.processor.pad([text.ids for _, text in open_rows])
        ids = model.generate(**inputs, **_images(asked, open_rows), decoding=decoding)
        texts = model.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for (index, row), text in zip(open_rows, texts, strict=True):
            words = " ".join(text.split()) if tasks.task in SHORT_TASKS else text.strip()
            caption = asked[index].conversation.turns[-1].caption
            answers[index] = Answer(words, shortened=row.cut > 0, caption=caption)
    if choice_rows:
        answers |= _choose(model, asked, choice_rows)
    return [answers[index] for index in range(len(asked))]


def describe(model: ExcitorModel, asked: Sequence[Asked], decoding: DecodingConfig) -> list[Asked]:
    """Every turn with a caption: that of an earlier turn, else what the model writes about the image, once for each.

    The images come back as their tokens, which the model takes as well, so that each is encoded once.

    Raises:
        AdapterError: an adapter that does not caption.
    """
    asked = _encode(model, asked)
    known = [next((turn.caption for turn in one.conversation.turns if turn.caption), "") for one in asked]
    unseen = {
        id(one.pixels): one.pixels for one, caption in zip(asked, known, strict=True) if one.pixels and not caption
    }
    opened = Conversation(0, (Turn(CAPTION_INSTRUCTION),))
    said = [Asked(opened, pixels) for pixels in unseen.values()]
    written = [found.text for found in answer(model, model.task_format("caption"), said, decoding)] if said else []
    captions = dict(zip(unseen, written, strict=True))
    return [
        one._replace(conversation=_with_caption(one.conversation, caption or captions.get(id(one.pixels), "")))
        for one, caption in zip(asked, known, strict=True)
    ]


def _encode(model: ExcitorModel, asked: Sequence[Asked]) -> Sequence[Asked]:
    """Tokens in place of pixels, one list for all questions about an image; tokens stay what they are."""
    images = {id(one.pixels): one.pixels for one in asked if one.pixels}
    if not images:
        return asked
    stacked = [torch.stack(group).to(model.device) for group in zip(*images.values(), strict=True)]
    tokens = map(list, zip(*model.tower.tokens(stacked), strict=True))
    encoded = dict(zip(images, tokens, strict=True))
    return [one._replace(pixels=encoded.get(id(one.pixels))) for one in asked]


def _with_caption(conversation: Conversation, caption: str) -> Conversation:
    turns = tuple(turn._replace(caption=turn.caption or caption) for turn in conversation.turns)
    return dataclasses.replace(conversation, turns=turns)


def _with_choices(model: ExcitorModel, tasks: TaskFormat, conversation: Conversation) -> list[Rendered]:
    """The conversation once with each choice; all with the same prompt, shortened for the longest choice."""
    tokenizer = model.processor.tokenizer
    *earlier, last = conversation.turns
    closed = [
        tasks.render(tokenizer, (*earlier, last._replace(answer=choice)), conversation.system)
        for choice in conversation.choices
    ]
    room = max(text.answers[-1][1] - text.answers[-1][0] for text in closed)
    prompt = tasks.render(tokenizer, conversation.turns, conversation.system, room)
    joined = []
    for text in closed:
        start, end = text.answers[-1]
        ids = [*prompt.ids, *text.ids[start:end]]
        joined.append(Rendered(ids, [(len(prompt.ids), len(ids))], prompt.cut))
    return joined


def _choose(model: ExcitorModel, asked: Sequence[Asked], rows: list[tuple[int, Rendered]]) -> dict[int, Answer]:
    """All choices of all questions as one batch."""
    batch = collate([Example("", text, None) for _, text in rows], model.processor.tokenizer.pad_token_id)
    likelihoods = log_likelihoods(model, **{**batch.inputs, **_images(asked, rows)}).tolist()
    scores: dict[int, list[float]] = {}
    shortened: dict[int, bool] = {}
    for (index, text), likelihood in zip(rows, likelihoods, strict=True):
        scores.setdefault(index, []).append(likelihood)
        shortened[index] = text.cut > 0
    return {
        index: Answer(
            asked[index].conversation.choices[max(range(len(found)), key=found.__getitem__)],
            tuple(found),
            shortened[index],
            asked[index].conversation.turns[-1].caption,
        )
        for index, found in scores.items()
    }


@torch.no_grad()
def log_likelihoods(model: ExcitorModel, **inputs: Any) -> Tensor:
    """float32[B], the log-likelihood of each row's answer; arguments of `ExcitorModel.answer_losses`."""
    losses, wanted = model.answer_losses(**inputs)
    return -torch.zeros(len(wanted), device=losses.device).index_add(0, wanted.nonzero()[:, 0], losses)


def _images(asked: Sequence[Asked], rows: Sequence[tuple[int, Rendered]]) -> dict[str, Any]:
    """The different images of some rows, and which row is about which."""
    images: dict[int, list[Tensor] | None] = {}
    for index, _ in rows:
        images.setdefault(id(asked[index].pixels), asked[index].pixels)
    stacked = stack_pixels(list(images.values()))
    if len(images) == len(rows):
        return stacked
    places = {key: place for place, key in enumerate(images)}
    return {**stacked, "image_rows": torch.tensor([places[id(asked[index].pixels)] for index, _ in rows])}
