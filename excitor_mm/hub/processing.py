"""`Processor` as transformers' Auto classes and pipelines expect one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from excitor_mm.adapter import find_adapter, load_config
from excitor_mm.data.pipeline import TaskFormat
from excitor_mm.data.tasks import ASKING_TASKS
from excitor_mm.errors import DataError
from excitor_mm.language import load_tokenizer
from excitor_mm.processor import Processor
from excitor_mm.prompts import prompt_ids
from excitor_mm.templates import Turn
from excitor_mm.vision.tower import load_tower


class ExcitorProcessor(ProcessorMixin):
    """Texts and images to the arguments of `generate`, and token ids back to text.

    Attributes:
        processor: the one that does the work.
        tasks: what the adapter was trained for.
        tokenizer: of the language model.
    """

    def __init__(self, processor: Processor, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.chat_template = None  # conversations are rendered as in training, see `apply_chat_template`

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prompt={self.processor.prompt!r})"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> ExcitorProcessor:
        """The processor of an adapter folder or a Hub id; `others` is what the Auto classes add."""
        folder = find_adapter(pretrained_model_name_or_path, revision, token, cache_dir, local_files_only)
        config = load_config(folder)
        tokenizer = load_tokenizer(config.language)

        def task_format(task: str) -> TaskFormat:
            return TaskFormat.of(config.prompts, task, tokenizer.model_max_length)

        return cls(Processor(tokenizer, load_tower(config.vision), task_format), tuple(config.prompts.templates))

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:  # type: ignore[override]
        """Nothing: an adapter folder names the frozen parts that a processor is read from."""

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **others: Any) -> BatchFeature:
        """See `Processor.__call__`. An empty text stands for the adapter's own prompt.

        Args:
            images: as in transformers; a list of one image for each text is read too.
            text: prompts without the tokenizer's opening token.
            others: `padding`, `return_tensors` and their kin, which are fixed here: left padding, PyTorch.

        Raises:
            DataError: several images for one text.
        """
        texts = [text] if text is None or isinstance(text, str) else list(text)
        filled = [part or self.processor.prompt for part in texts]
        return BatchFeature(self.processor(images=_one_each(images), text=filled))

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Any], *, tokenize: bool = True, **others: Any
    ) -> Any:
        """The prompt of a conversation, or of several, in the words of the adapter's training.

        Without a question it asks for a caption. An adapter that only writes captions takes the last text as it is.

        Args:
            conversation: messages with `role` and `content`, as in transformers; at most one image.
            tokenize: return what `generate` takes instead of the text.
            others: what pipelines add; not needed.

        Raises:
            DataError: no open question at the end, several images, or an adapter that asks with a caption.
        """
        is_one = isinstance(conversation[0], Mapping)
        found = [_read_messages(messages) for messages in ([conversation] if is_one else conversation)]
        ids = [self._prompt_ids(turns, system) for turns, system, _ in found]
        if tokenize:
            pixels = [None if image is None else self.processor.pixels(image) for _, _, image in found]
            return BatchFeature(self.processor.collate(ids, pixels))
        texts = [self.tokenizer.decode(row) for row in ids]
        return texts[0] if is_one else texts

    def _prompt_ids(self, turns: tuple[Turn, ...], system: str) -> list[int]:
        task = next((task for task in ASKING_TASKS if task in self.tasks), None)
        if len(turns) == 1 and not turns[0].question:
            return self.processor.caption_ids()
        if task is None:
            return prompt_ids(self.tokenizer, turns[-1].question)
        tasks = self.processor.task_format(task)
        if tasks.form.describes:
            raise DataError(
                "The adapter asks its questions with a caption that the model writes first, which a processor alone "
                "cannot do: take excitor_mm.answer, or `excitor-mm ask`."
            )
        return tasks.render(self.tokenizer, turns, system).ids


def _one_each(images: Any) -> Any:
    """Lists of one image are unpacked."""
    if not isinstance(images, (list, tuple)):
        return images
    flat = [image[0] if isinstance(image, (list, tuple)) and len(image) == 1 else image for image in images]
    if many := [len(image) for image in flat if isinstance(image, (list, tuple))]:
        raise DataError(f"{many[0]} images are given for one text: give one, an Excitor sees a single image.")
    return flat


def _read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[Turn, ...], str, Any]:
    """Turns with an open question at the end, the system's text, and the image."""
    images: list[Any] = []
    texts: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [
            part[key]
            for part in parts
            for key in ("image", "url", "path", "base64")
            if part["type"] == "image" and key in part
        ]
        texts[message["role"]].append(" ".join(part["text"] for part in parts if part["type"] == "text"))
    if len(texts["user"]) != len(texts["assistant"]) + 1:
        raise DataError("The conversation does not end with an open question: the user speaks first and last.")
    answers: list[str | None] = [*texts["assistant"], None]
    turns = tuple(Turn(asked, answer=said) for asked, said in zip(texts["user"], answers, strict=True))
    image = _one_each([[load_image(one) for one in images]])[0] if images else None
    return turns, "\n".join(texts["system"]), image
