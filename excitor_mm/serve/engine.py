"""One adapter that answers many clients: prompts and pixels in, texts out, batched, word by word where wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from excitor_mm.config import DecodingConfig
from excitor_mm.data.samples import clean_caption
from excitor_mm.data.tasks import ASKING_TASKS
from excitor_mm.errors import AdapterError
from excitor_mm.explain import Explanation, explain
from excitor_mm.model import ExcitorModel
from excitor_mm.processor import ImageLike
from excitor_mm.serve.batching import Batcher
from excitor_mm.templates import Turn

Listener = Callable[[str], None]
"""Hears the whole text so far, each time it has grown; called in the batcher's thread."""


class Prepared(NamedTuple):
    """What a batch is made of."""

    ids: list[int]
    pixels: list[Tensor] | None
    listener: Listener | None


class Engine:
    """Answers from any thread. Images are decoded and resized in the caller's thread, before they wait.

    Args:
        model: in eval mode; nothing else may use it meanwhile.
        name: what clients call the adapter.
        batch_size, limit: see `Batcher`.
    """

    def __init__(self, model: ExcitorModel, name: str, *, batch_size: int = 8, limit: int = 256) -> None:
        self.model, self.name = model, name
        self.batcher: Batcher[Any, Any] = Batcher(self._work, size=batch_size, limit=limit)

    def caption(
        self, image: ImageLike, decoding: DecodingConfig | None = None, listener: Listener | None = None
    ) -> Future[str]:
        """A caption.

        Args:
            image: PIL image, encoded bytes or path.
            decoding: replaces the adapter's own; only requests of the same decoding share a batch.
            listener: hears the text grow; with several beams it hears it once, at the end.

        Raises:
            BadImage: an image that cannot be read.
            Busy: too many requests wait.
        """
        prepared = Prepared(self.model.processor.caption_ids(), self.model.processor.pixels(image), listener)
        return self.batcher.submit(decoding or self.model.config.decoding, prepared)

    @property
    def can_answer(self) -> bool:
        """Whether the adapter was trained for questions, not for captions alone."""
        return self._asking is not None

    @property
    def _asking(self) -> str | None:
        templates = self.model.config.prompts.templates
        return next((task for task in ASKING_TASKS if task in templates), None)

    def ask(
        self,
        image: ImageLike | None,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        system: str = "",
        decoding: DecodingConfig | None = None,
        listener: Listener | None = None,
    ) -> Future[str]:
        """An answer; `history` holds earlier questions with their answers, `system` replaces the system prompt. Where
        the adapter's questions hold a caption, one is written first, and waited for here.

        Raises:
            AdapterError: an adapter that only writes captions.
            BadImage, Busy: as in `caption`.
            DataError: a conversation that is too long.
        """
        if self._asking is None:
            raise AdapterError(
                f"The adapter {self.name} only writes captions: ask for one, or serve another adapter."
            )
        decoding = decoding or self.model.config.decoding
        tasks = self.model.task_format(self._asking)
        pixels = None if image is None else self.model.processor.pixels(image)
        caption = ""
        if pixels is not None and tasks.form.describes:
            opened = Prepared(self.model.processor.caption_ids(), pixels, None)
            caption = self.batcher.submit(decoding, opened).result()
        earlier = (Turn(asked, answer=answer, caption=caption) for asked, answer in history)
        turns = (*earlier, Turn(question, caption=caption))
        ids = tasks.render(self.model.processor.tokenizer, turns, system, decoding.max_new_tokens).ids
        return self.batcher.submit(decoding, Prepared(ids, pixels, listener))

    def explain(self, image: ImageLike, answer: str | None = None) -> Future[Explanation]:
        """What the Excitor did to a caption, in the batcher's turn: the model does one thing at a time."""
        return self.batcher.submit(object(), functools.partial(explain, self.model, image, answer=answer))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.model.processor.tokenizer.encode(text, add_special_tokens=False))

    def _work(self, key: Hashable, batch: list[Any]) -> Sequence[Any]:
        return self._generate(key, batch) if isinstance(key, DecodingConfig) else [call() for call in batch]

    def _generate(self, decoding: DecodingConfig, batch: Sequence[Prepared]) -> list[str]:
        processor = self.model.processor
        inputs = processor.collate([one.ids for one in batch], [one.pixels for one in batch])
        listeners = [one.listener for one in batch]
        options: dict[str, Any] = {}
        if decoding.beams == 1 and any(listeners):
            options["streamer"] = _Streamer(processor.tokenizer, listeners)
        texts = processor.batch_decode(self.model.generate(**inputs, decoding=decoding, **options))
        for text, listener in zip(texts, listeners, strict=True):
            if listener is not None:
                listener(text)
        return texts

    def close(self) -> None:
        """Answer what waits, and end."""
        self.batcher.close()


class _Streamer(BaseStreamer):
    """Hands each row's text to its listener; transformers' own streamers know one row only."""

    def __init__(self, tokenizer: Any, listeners: Sequence[Listener | None]) -> None:
        self.tokenizer, self.listeners = tokenizer, listeners
        self.rows: list[list[int]] | None = None

    def put(self, value: Tensor) -> None:
        if self.rows is None:  # the prompts come first
            self.rows = [[] for _ in self.listeners]
            return
        for row, listener, token in zip(self.rows, self.listeners, value.flatten().tolist(), strict=True):
            row.append(token)
            text = clean_caption(self.tokenizer.decode(row, skip_special_tokens=True))
            if listener is not None and not text.endswith("\ufffd"):  # half a character waits for its other half
                listener(text)

    def end(self) -> None:
        pass
