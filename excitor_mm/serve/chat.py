"""The chat-completions shape: its messages to what an `Engine` takes, and answers back to its JSON."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from excitor_mm.config import DecodingConfig
from excitor_mm.errors import DataError
from excitor_mm.serve.images import Limits, read_image_url

CAPTION_WORDS = re.compile(r"\b(caption|describe|description)\b", re.IGNORECASE)


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class ChatRequest(BaseModel):
    """What clients of chat-completions send; other fields of theirs are ignored."""

    model: str = ""
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(default=None, ge=1, le=256)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=256)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Literal[1] = 1
    stream: bool = False


class Conversation(NamedTuple):
    """What an engine answers."""

    image: bytes | None
    turns: list[tuple[str, str]]
    """Earlier questions with their answers."""
    question: str
    """The open one; empty: a caption is wanted."""
    system: str


def read_conversation(messages: Sequence[Message], limits: Limits) -> Conversation:
    """Questions and answers in turn, about one image.

    Raises:
        DataError: several images, no question at the end, or an image that cannot be had.
    """
    system, turns, open_questions, images = [], [], [], []
    for message in messages:
        parts = [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        images += [part.image_url.url for part in parts if part.image_url is not None]
        text = "\n".join(part.text for part in parts if part.type == "text")
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user":
            open_questions.append(text)
        else:
            turns.append(("\n".join(open_questions), text))
            open_questions = []
    if not open_questions:
        raise DataError("The last message is not the user's: end the conversation with a question or an image.")
    if len(images) > 1:
        raise DataError(f"The conversation holds {len(images)} images: an Excitor sees one, send one.")
    image = read_image_url(images[0], limits) if images else None
    return Conversation(image, turns, "\n".join(open_questions).strip(), "\n".join(system))


def wants_caption(conversation: Conversation) -> bool:
    """Whether a model that only writes captions can answer."""
    only = not conversation.turns and conversation.image is not None
    return only and (not conversation.question or bool(CAPTION_WORDS.search(conversation.question)))


def decoding_of(request: ChatRequest, default: DecodingConfig) -> DecodingConfig:
    """Greedy or sampled, as the client says; streams and samples have one beam."""
    from dataclasses import replace

    changes: dict[str, Any] = {}
    if limit := request.max_completion_tokens or request.max_tokens:
        changes["max_new_tokens"] = limit
    if request.temperature:
        changes |= {"sample": True, "temperature": request.temperature, "top_p": request.top_p or 1.0}
    if request.stream or request.temperature:
        changes["beams"] = 1
    return replace(default, **changes)


def completion(model: str, text: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens}
    return {
        **_head("chat.completion", model),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**usage, "total_tokens": prompt_tokens + new_tokens},
    }


def chunk(identity: dict[str, Any], text: str | None) -> dict[str, Any]:
    """A piece of a streamed answer; None: the end."""
    delta = {} if text is None else {"role": "assistant", "content": text}
    return {**identity, "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if text is None else None}]}


def chunk_head(model: str) -> dict[str, Any]:
    """What all pieces of one answer share."""
    return _head("chat.completion.chunk", model)


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
