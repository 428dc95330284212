"""Prompts as token ids, and the line between prompt and answer.

In: the turns of a conversation. Out: token ids, and where in them the answers stand. One function, `render`, does
this for training, validation, captions and answers alike, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from excitor_mm.errors import ConfigError, DataError
from excitor_mm.templates import CHAT, PromptFormat, Turn, prompt_text, worded


class Tokenizer(Protocol):
    """What this file needs of a transformers tokenizer."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The inverse."""
        ...


class Rendered(NamedTuple):
    """A conversation as the language model reads it."""

    ids: list[int]
    answers: list[tuple[int, int]]
    """Where each answer begins and ends; the end token belongs to it."""
    cut: int
    """Tokens of context left out because the prompt was too long."""
    branches: list[int] | None = None
    """Of each token where several answers share the prompt, see branches.py."""


class TooLong(DataError):
    """A prompt that no shortening of its context makes short enough."""


def render(tokenizer: Any, form: PromptFormat, turns: Sequence[Turn], limit: int | None = None) -> Rendered:
    """Token ids of a conversation.

    Args:
        tokenizer: of the language model.
        form: which words stand around the turns.
        turns: all with answers but perhaps the last; without its answer the ids end where it begins.
        limit: longest allowed number of ids; contexts are shortened from their end.

    Raises:
        ConfigError: a template that does not suit the tokenizer or the turns, or a prompt of one token.
        DataError: an answer without a word.
        TooLong: over the limit with all contexts left out.
    """
    turns, cut = list(turns), 0
    while True:
        ids, answers = (_chat if form.template == CHAT else _templated)(tokenizer, form, turns)
        over = 0 if limit is None else len(ids) - limit
        if over <= 0:
            return Rendered(ids, answers, cut)
        place = max(range(len(turns)), key=lambda index: len(turns[index].context))
        context = tokenizer.encode(turns[place].context, add_special_tokens=False)
        if not context:
            raise TooLong(
                f"A prompt has {len(ids)} tokens without any context, at most {limit} are possible: shorten the "
                "question, or raise prompt.max_tokens."
            )
        kept = tokenizer.decode(context[: max(0, len(context) - over)]).rstrip("\ufffd")
        kept = kept if len(kept) < len(turns[place].context) else kept[:-1]
        turns[place] = turns[place]._replace(context=kept)
        cut += min(over, len(context))


def _templated(tokenizer: Any, form: PromptFormat, turns: Sequence[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    answers = []
    for number, turn in enumerate(turns):
        prompt = prompt_text(form, turn, first=number == 0)
        before = prompt_ids(tokenizer, prompt, first=number == 0)
        ids += before
        if turn.answer is not None:
            answer = answer_ids(tokenizer, prompt, turn.answer, first=number == 0)
            answers.append((len(ids), len(ids) + len(answer)))
            ids += answer
    return ids, answers


def _chat(tokenizer: Any, form: PromptFormat, turns: Sequence[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
    messages = [{"role": "system", "content": form.system}] if form.system else []
    ids: list[int] = []
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.text})
        opened = _chat_ids(tokenizer, messages, form.system, answering=True)
        closed = opened
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": worded(turn.answer)})
            closed = _chat_ids(tokenizer, messages, form.system, answering=False)
        if opened[: len(ids)] != ids or closed[: len(opened)] != opened:
            raise ConfigError(
                "The chat template of the language model rewrites earlier turns: choose another prompt.template."
            )
        ids = opened
        if turn.answer is not None:
            _said(tokenizer, closed[len(opened) :], turn.answer)
            ids = closed[: _end(closed, tokenizer.eos_token_id, len(opened))]
            ids += [] if ids[-1] == tokenizer.eos_token_id else [_eos(tokenizer)]
            answers.append((len(opened), len(ids)))
    return ids, answers


def _chat_ids(tokenizer: Any, messages: list[dict[str, str]], system: str, answering: bool) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError("The language model has no chat template: choose alpaca or another prompt.template.")
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
    except jinja2.TemplateError as error:
        raise ConfigError(f"The chat template of the language model refuses these turns ({error}).") from error
    if system.strip() not in text:
        raise ConfigError("The chat template of the language model has no system role: leave prompt.system empty.")
    return tokenizer.encode(text, add_special_tokens=False)


def _end(ids: list[int], eos: int | None, start: int) -> int:
    """Behind the last end token from `start` on, or the end of the ids; templates put a line break there."""
    places = [place for place in range(start, len(ids)) if ids[place] == eos]
    return places[-1] + 1 if places else len(ids)


def prompt_ids(tokenizer: Tokenizer, text: str, first: bool = True) -> list[int]:
    """Token ids of the prompt; with the tokenizer's own opening token where it is the `first` of a conversation.

    Raises:
        ConfigError: fewer than two tokens. The first position sees only itself, so an Excitor cannot
            influence it and a one-token prompt would make the first word blind.
    """
    ids = tokenizer.encode(text, add_special_tokens=first)
    if len(ids) < 2:
        raise ConfigError(f"The prompt {text!r} has {len(ids)} token(s): at least 2 are needed.")
    return ids


def answer_ids(tokenizer: Tokenizer, prompt: str, answer: str, first: bool = True) -> list[int]:
    """Token ids of an answer as they follow `prompt`, closed by the end-of-sequence token.

    Both are encoded together, because byte-level and sentencepiece tokenizers treat a leading space
    differently.

    Raises:
        ConfigError: the last token of the prompt would change with the answer, or no end token exists.
        DataError: an answer without a word.
    """
    before = prompt_ids(tokenizer, prompt, first)
    ids = tokenizer.encode(prompt + " " + worded(answer), add_special_tokens=first)
    if ids[: len(before)] != before:
        raise ConfigError(
            f"The prompt {prompt!r} and the answer {answer!r} share a token: end the template with a colon "
            "or a line break."
        )
    return [*_said(tokenizer, ids[len(before) :], answer), _eos(tokenizer)]


def _said(tokenizer: Tokenizer, ids: list[int], answer: str) -> list[int]:
    """The ids of an answer, if they say anything."""
    if not tokenizer.decode(ids, skip_special_tokens=True).strip():
        raise DataError(f"The answer {answer!r} has no token that says anything: leave the row out, or rewrite it.")
    return ids


def _eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigError("The tokenizer has no end-of-sequence token: set one in its folder.")
    return tokenizer.eos_token_id
