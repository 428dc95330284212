"""A conversation with an adapter, about an image or without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from excitor_mm.answer import Answer, Asked, answer
from excitor_mm.config import DecodingConfig
from excitor_mm.console import log
from excitor_mm.data.pipeline import TaskFormat
from excitor_mm.model import ExcitorModel
from excitor_mm.processor import ImageLike
from excitor_mm.prompts import TooLong
from excitor_mm.queries import ask
from excitor_mm.templates import CHAT, PromptFormat, Turn


def choose_task(model: ExcitorModel, wish: str | None, has_image: bool) -> str:
    """The task whose prompts suit a question: the wish, else short answers about images and instructions without.

    Raises:
        AdapterError: the adapter was not trained for the wish, or for no question at all.
    """
    known = model.config.prompts.templates
    liked = ("vqa", "instructions", "scienceqa") if has_image else ("instructions", "scienceqa", "vqa")
    task = wish or next((task for task in liked if task in known), liked[0])
    return model.task_format(task).task


class Chat:
    """Turns about one image, or none.

    Args:
        model: with its adapter; inside `model.base_model()` where `base` is asked for.
        image: path, bytes or PIL image; None: text alone.
        task: of the adapter; None: see `choose_task`.
        base: the language model's own chat template in place of the adapter's prompts.
        template: replaces the prompt template.
        system: what the model is told first.
        decoding: replaces the adapter's own.

    Raises:
        AdapterError: see `choose_task`.
        BadImage: an image that cannot be read.
    """

    def __init__(
        self,
        model: ExcitorModel,
        image: ImageLike | None,
        *,
        task: str | None = None,
        base: bool = False,
        template: str | None = None,
        system: str = "",
        decoding: DecodingConfig | None = None,
    ) -> None:
        self.model, self.decoding = model, decoding
        if base:
            limit = model.language.config.max_position_embeddings
            self.tasks = TaskFormat("instructions", PromptFormat(CHAT), "", limit)
        else:
            self.tasks = model.task_format(choose_task(model, task, image is not None))
        form = self.tasks.form
        form = dataclasses.replace(form, template=template or form.template, system=system or form.system)
        self.tasks = dataclasses.replace(self.tasks, form=form)
        self.pixels = None if image is None else model.processor.pixels(image)
        self.history: list[Turn] = []

    def say(self, question: str, *, context: str = "", choices: Sequence[str] = ()) -> Answer:
        """The answer to a question; it is remembered, and the oldest turns are forgotten where space is short.

        Raises:
            DataError: an empty question, one that is too long by itself, or more choices than letters.
        """
        decoding = self.decoding or self.model.config.decoding
        room = decoding.max_new_tokens * (2 if self.tasks.form.describes else 1)  # a caption comes into the prompt
        conversation = ask(self.tasks, question, context=context, choices=choices, history=self.history)
        while True:
            try:
                self.tasks.render(self.model.processor.tokenizer, conversation.turns, room=room)
                break
            except TooLong:
                if not self.history:
                    raise
                log("The conversation is longer than the model reads: its oldest turn is forgotten.")
                del self.history[0]
                conversation = ask(self.tasks, question, context=context, choices=choices, history=self.history)
        (said,) = answer(self.model, self.tasks, [Asked(conversation, self.pixels)], decoding)
        if said.text:
            self.history.append(conversation.turns[-1]._replace(answer=said.text, caption=said.caption))
        return said
