"""Samples to batches: one conversation of a sample, its image decoded and varied, token ids and labels."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from excitor_mm.branches import share_prompt, stack_branches
from excitor_mm.config import Prompts
from excitor_mm.data.features import CachedTokens
from excitor_mm.data.images import load_image
from excitor_mm.data.order import stable_hash
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.tasks import Conversation, conversations
from excitor_mm.errors import AdapterError, DataError
from excitor_mm.prompts import Rendered, TooLong, render
from excitor_mm.templates import PromptFormat, Turn

IGNORE = -100  # label of a position without loss, torch's default


class Example(NamedTuple):
    """One conversation with answers, ready for collation."""

    key: str
    text: Rendered
    pixels: list[Tensor] | None
    """For each encoder a uint8[3, S, S], or its tokens float[N, V] from a cache; None without an image."""
    references: tuple[str, ...] = ()
    """All right answers to the last turn; one of them is in the text."""
    seed: int = 0
    """Of this visit of the sample."""


class Batch(NamedTuple):
    """What the model takes, and who it is about."""

    keys: list[str]
    inputs: dict[str, Any]
    """Arguments of `ExcitorModel.forward`; see there."""
    shortened: int = 0
    """Examples whose context was too long."""
    references: tuple[tuple[str, ...], ...] = ()
    """Of each example; see there."""
    seeds: tuple[int, ...] = ()
    """Of each example; see there."""

    def row(self, index: int) -> dict[str, Any]:
        """The inputs of one row."""
        values = {name: v[index, None] if isinstance(v, Tensor) else v for name, v in self.inputs.items()}
        return {**values, "pixel_values": [part[index, None] for part in self.inputs["pixel_values"]]}


@dataclass(frozen=True)
class TaskFormat:
    """How samples of one task become conversations and prompts; everything comes from the adapter's config."""

    task: str
    """A name in `data.tasks.TASKS`."""
    form: PromptFormat
    """Of this task."""
    scienceqa: str
    """Format of ScienceQA problems."""
    limit: int
    """Longest prompt with answer, in tokens."""

    @classmethod
    def of(cls, prompts: Prompts, task: str, context: int) -> TaskFormat:
        """The format of one of an adapter's tasks, for a language model that reads `context` tokens.

        Raises:
            AdapterError: not one of its tasks.
        """
        if task not in prompts.templates:
            raise AdapterError(
                f"The adapter was trained for {', '.join(prompts.templates)}, not for {task}: "
                "choose one of its tasks, or another adapter."
            )
        form = PromptFormat(prompts.templates[task], tuple(prompts.palette), prompts.system)
        return cls(task, form, prompts.scienceqa, min(prompts.max_tokens or context, context))

    def conversations(self, sample: Sample) -> list[Conversation]:
        """See `data.tasks.conversations`."""
        return conversations(sample, self.task, self.scienceqa)

    def render(self, tokenizer: Any, turns: tuple[Turn, ...], system: str = "", room: int = 0) -> Rendered:
        """Token ids of turns, with `room` tokens left for an answer; see `prompts.render`."""
        form = dataclasses.replace(self.form, system=system) if system else self.form
        return render(tokenizer, form, turns, self.limit - room)


@dataclass(frozen=True)
class ExampleMaker:
    """The transform of a stream: a sample and its epoch to an example.

    Which question and answer are drawn and how the image is cropped depend on (seed, epoch, key) alone. Of n
    questions each is asked once in n epochs.
    """

    tokenizer: Any
    tasks: TaskFormat
    image_transform: Callable[[Any], list[Tensor]]
    seed: int
    max_pixels: int
    draw: bool
    """True: one of the questions and `answers` of its answers by hash (training); False: the first question with its
    most frequent answer (validation loss)."""
    answers: int = 1
    """Drawn at a visit, behind one prompt; fewer where there are not so many."""
    enough: int | None = None
    """See `load_image`."""
    cached: CachedTokens | None = None
    """Gives tokens that were encoded beforehand, in place of pixels."""

    def __call__(self, sample: Sample, epoch: int) -> Example:
        found = self.tasks.conversations(sample)
        turn = (stable_hash(self.seed, sample.key) + epoch) % len(found) if self.draw else 0
        drawn = stable_hash(self.seed, epoch, sample.key)
        text = self._text(sample, found[turn], drawn)
        return Example(sample.key, text, self._pixels(sample, epoch), _worded(found[turn]), drawn)

    def _pixels(self, sample: Sample, epoch: int) -> list[Tensor] | None:
        if sample.image is None:
            return None
        if self.cached is not None:
            return self.cached(sample.shard, sample.key, epoch)
        image = load_image(sample.image, self.max_pixels, self.enough)
        return draw_pixels(image, self.image_transform, self.seed, epoch, sample.key)

    def _text(self, sample: Sample, conversation: Conversation, drawn: int) -> Rendered:
        where = f"{sample.shard}: sample {sample.key}"
        answers = _worded(conversation)
        if not answers:
            raise BadSample("no answer", f"{where} has no answer to learn from.")
        chosen, chooser = [Counter(answers).most_common(1)[0][0]], random.Random(drawn)
        if self.draw:
            chosen = chooser.sample(answers, min(self.answers, len(answers)))
        *earlier, last = conversation.turns
        if self.tasks.form.describes:
            if not conversation.captions:
                raise BadSample("no caption", f"{where} has no caption to ask with.")
            captions = conversation.captions
            last = last._replace(caption=chooser.choice(captions) if self.draw else captions[0])
        said = [(*earlier, last._replace(answer=answer)) for answer in chosen]
        try:
            texts = [self.tasks.render(self.tokenizer, turns, conversation.system) for turns in said]
            return share_prompt(texts) if len(texts) > 1 else texts[0]
        except TooLong as error:
            raise BadSample("too long", f"{where}: {error}") from error
        except DataError as error:
            raise BadSample("no answer", f"{where}: {error}") from error


def _worded(conversation: Conversation) -> tuple[str, ...]:
    """The right answers that say something."""
    return tuple(answer for answer in conversation.answers if answer.strip())


def draw_pixels(
    image: Image, transform: Callable[[Image], list[Tensor]], seed: int, epoch: int, key: str
) -> list[Tensor]:
    """An image as an epoch sees it: crops and flips depend on (seed, epoch, key) alone."""
    with torch.random.fork_rng(devices=[]):  # torchvision draws its crops from the global generator
        torch.manual_seed(stable_hash(seed, epoch, key))
        return transform(image)


def collate(examples: list[Example], padding: int) -> Batch:
    """Examples to one batch, padded on the right (no generation follows)."""
    length = max(len(example.text.ids) for example in examples)
    ids = torch.full((len(examples), length), padding)
    labels = torch.full((len(examples), length), IGNORE)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    for index, example in enumerate(examples):
        row = torch.tensor(example.text.ids)
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
        for start, end in example.text.answers:
            labels[index, start:end] = row[start:end]
    return Batch(
        [example.key for example in examples],
        {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            **stack_branches([example.text for example in examples], length),
            **stack_pixels([example.pixels for example in examples]),
        },
        sum(example.text.cut > 0 for example in examples),
        tuple(example.references for example in examples),
        tuple(example.seed for example in examples),
    )


def stack_pixels(images: list[list[Tensor] | None]) -> dict[str, Any]:
    """Prepared images, None where there is none, to the arguments `pixel_values` and `image_mask` of the model.

    Samples without an image get zeros, which the mask hides; without any image there are no pixels at all.
    """
    shown = next((image for image in images if image is not None), None)
    blank = [torch.zeros_like(pixels) for pixels in shown or []]
    filled = [blank if image is None else image for image in images]
    return {
        "pixel_values": [torch.stack(group) for group in zip(*filled, strict=True)],
        "image_mask": torch.tensor([image is not None for image in images]),
    }
