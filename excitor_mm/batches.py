"""The batches of a rank for each training step: from one stream, or from several mixed by weight.

A step takes all its samples from one source, at the next positions in that source's order. Position p goes to rank
p % ranks, and there to pass p // ranks % accumulation: two passes of one rank see the same samples as one pass of two
ranks. A pass whose samples differ much in length is read in several batches, so that little padding is computed; that
changes no sample of a step, and its gradient only by rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from accelerate import Accelerator

from excitor_mm.cache_features import cached_tokens
from excitor_mm.config import RunConfig, SourceConfig
from excitor_mm.data.pipeline import IGNORE, Batch, Example, ExampleMaker, collate
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import Step, TrainingStream, training_steps
from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.model import ExcitorModel

FURTHER_BATCH = 256
"""Padding, in tokens, that is worth a further batch: its many small operations take about as long."""


class Window(NamedTuple):
    """What a rank brings to one step."""

    batches: list[Batch]
    """At least one for each accumulated pass."""
    tokens: int
    """Answer tokens in all of them."""
    error: ExcitorError | None
    """Why there are none; to be told to the other ranks before it is raised."""


class Windows:
    """Windows from step `start` on."""

    def __init__(self, config: RunConfig, model: ExcitorModel, accelerator: Accelerator, start: int) -> None:
        sources = config.training_sources()
        self.ranks, self.passes = accelerator.num_processes, config.train.accumulation
        # Ranks that hold parts of the model need equally many batches; captions that are drawn have no length yet.
        self.together = config.train.shard_frozen or config.train.stage == "scst"
        self.collate = functools.partial(collate, padding=model.processor.tokenizer.pad_token_id)
        self.order = mixed_order([source.weight for source in sources])
        self.spare: Example | None = None
        done = [0] * len(sources)
        for _ in range(start):
            done[next(self.order)] += 1
        self.streams = [
            _stream(config, source, model, accelerator, steps) for source, steps in zip(sources, done, strict=True)
        ]

    def close(self) -> None:
        """End the processes that read: an iterator may live on in the frames of an exception, and they with it."""
        for stream in self.streams:
            stream.close()

    def next(self) -> Window:
        """The next window; an error is not raised, but handed over."""
        try:
            batches = self._batches(next(self.streams[next(self.order)]))
        except ExcitorError as error:
            return Window([], 0, error)
        tokens = sum(int((batch.inputs["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
        return Window(batches, tokens, None)

    def _batches(self, step: Step) -> list[Batch]:
        passes: list[list[Example]] = [[] for _ in range(self.passes)]
        for position, example in step.examples.items():
            passes[position // self.ranks % self.passes].append(example)
            self.spare = example
        if self.spare is None:
            reason = f" (last: {step.bad[-1].reason})" if step.bad else ""
            raise DataError(f"No sample of the first step can be used{reason}: run `excitor-mm shards check`.")
        # A pass without a good sample still takes part in what the ranks do together, with nothing to learn.
        silent = self.spare._replace(text=self.spare.text._replace(answers=[]), references=())
        batches: list[Batch] = []
        for examples in passes:
            groups = [examples or [silent]] if self.together else by_length(examples or [silent])
            batches += map(self.collate, groups)
        return batches


def by_length(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """Groups of similar length with the fewest tokens, padding included; each group costs `FURTHER_BATCH` more."""
    rising = sorted(examples, key=lambda example: len(example.text.ids))
    best = [(0, 0)]  # of the n shortest: tokens, and where the last group begins
    for end, example in enumerate(rising, 1):
        length = len(example.text.ids)
        best.append(min((best[start][0] + (end - start) * length + FURTHER_BATCH, start) for start in range(end)))
    groups: list[Sequence[Example]] = []
    end = len(rising)
    while end:
        start = best[end][1]
        groups.append(rising[start:end])
        end = start
    return groups if len(groups) > 1 else [examples]


def mixed_order(weights: Sequence[float]) -> Iterator[int]:
    """Which source gives each step, for ever: after any number of steps each has its share, to within one.

    A function of the weights alone, so all ranks take from the same source at the same time and a resumed run finds
    its place by counting.
    """
    total = sum(weights)
    credit = [0.0] * len(weights)
    while True:
        credit = [have + weight / total for have, weight in zip(credit, weights, strict=True)]
        place = max(range(len(weights)), key=credit.__getitem__)
        credit[place] -= 1
        yield place


def _stream(
    config: RunConfig, source: SourceConfig, model: ExcitorModel, accelerator: Accelerator, start: int
) -> Generator[Step]:
    data, seed = config.data, config.train.seed
    maker = ExampleMaker(
        model.processor.tokenizer,
        model.task_format(source.task),
        model.tower.transform(data.crop_scale, data.flip),
        seed,
        data.max_pixels,
        draw=True,
        answers=config.train.answers,
        enough=model.tower.enough(data.crop_scale) if data.draft else None,
        cached=cached_tokens(config, source, model.tower, training=True),
    )
    stream = TrainingStream(
        list_shards(source.shards),
        maker,
        batch_size=config.train.batch_size,
        seed=seed,
        lanes=data.lanes,
        shuffle_buffer=data.shuffle_buffer,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_bad_fraction=data.max_bad_fraction,
        start_step=start,
    )
    return training_steps(stream, data.workers)
