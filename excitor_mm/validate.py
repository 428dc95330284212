"""Validation during training: the loss and the score of each source's task, over all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from excitor_mm.answer import Asked, answer
from excitor_mm.cache_features import cached_tokens
from excitor_mm.config import DecodingConfig, RunConfig, SourceConfig
from excitor_mm.data.pipeline import Batch, Example, ExampleMaker, collate
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.data.tasks import Conversation
from excitor_mm.errors import DataError
from excitor_mm.files import write_text
from excitor_mm.metrics.captions import score_captions, wording
from excitor_mm.metrics.scienceqa import LETTERS, extract_choice
from excitor_mm.metrics.vqa import accuracy
from excitor_mm.model import ExcitorModel

SCORES = {
    "caption": ("cider", "CIDEr x100 (greedy)"),
    "vqa": ("vqa_accuracy", "VQA accuracy x100 (greedy)"),
    "scienceqa": ("choice_accuracy", "choice accuracy x100"),
    "instructions": ("minus_loss", "negative loss per answer token"),
}
"""Task -> name of its score in metrics.jsonl, and in words; higher is better."""


ANSWERS = "validation.jsonl"
"""In the run folder: what the last validation's first source was answered, for the report."""


class Validated(NamedTuple):
    """One validation."""

    scores: dict[str, float]
    """validation_loss, per answer token of each sample's first conversation, and the task's score; for captions also
    what `metrics.captions.wording` gives; of a second and later source with the task's name before them."""
    chosen: float
    """The first source's score, which chooses best/."""


def validate(model: ExcitorModel, config: RunConfig, accelerator: Accelerator) -> Validated:
    """Score the validation sources.

    Raises:
        DataError: one that gives no score.
    """
    scores: dict[str, float] = {}
    sources = config.validation_sources()
    for number, source in enumerate(sources):
        prefix = f"{source.task}." if number else ""
        scores |= {prefix + name: value for name, value in _validate(model, config, source, accelerator).items()}
    return Validated(scores, scores[SCORES[sources[0].task][0]])


class _Checked(NamedTuple):
    """A batch with everything that its samples ask."""

    batch: Batch
    asked: list[Asked]


class _Maker:
    """The transform of the stream, and its collation."""

    def __init__(self, maker: ExampleMaker) -> None:
        self.maker = maker

    def __call__(self, sample: Sample, epoch: int) -> tuple[Example, list[Conversation]]:
        return self.maker(sample, epoch), self.maker.tasks.conversations(sample)

    def collate(self, made: list[tuple[Example, list[Conversation]]]) -> _Checked:
        """Examples to a batch, and every conversation with its image."""
        asked = [Asked(conversation, example.pixels) for example, found in made for conversation in found]
        return _Checked(collate([example for example, _ in made], self.maker.tokenizer.pad_token_id), asked)


@torch.no_grad()
def _validate(
    model: ExcitorModel, config: RunConfig, source: SourceConfig, accelerator: Accelerator
) -> dict[str, float]:
    data, tokenizer, tasks = config.data, model.processor.tokenizer, model.task_format(source.task)
    size = max(1, config.train.batch_size // (accelerator.num_processes * config.train.accumulation))
    cached = cached_tokens(config, source, model.tower, training=False)
    transform, seed = model.tower.transform(), config.train.seed
    maker = _Maker(ExampleMaker(tokenizer, tasks, transform, seed, data.max_pixels, draw=False, cached=cached))
    stream = EvaluationStream(
        list_shards(source.shards),
        maker,
        maker.collate,
        batch_size=size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    greedy = DecodingConfig(beams=1, max_new_tokens=config.decoding.max_new_tokens)
    summed, count = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    rows: list[tuple[Conversation, str]] = []
    for item in read_stream(stream, data.workers):
        if item.batch is None:
            continue
        loss, tokens = model(**item.batch.batch.inputs)
        summed, count = summed + loss, count + tokens
        asked = item.batch.asked if source.task != "instructions" else []
        for start in range(0, len(asked), size):
            chunk = asked[start : start + size]
            for one, said in zip(chunk, answer(model, tasks, chunk, greedy), strict=True):
                rows.append((one.conversation, said.text))
    rows = gather_object(rows)
    summed, count = accelerator.reduce(summed, reduction="sum"), accelerator.reduce(count, reduction="sum")
    loss_per_token = (summed / count).item()
    if source.task == "instructions":
        return {"validation_loss": loss_per_token, "minus_loss": -loss_per_token}
    score, each = _score(source.task, rows)
    if accelerator.is_main_process and source == config.validation_sources()[0]:
        _write_answers(Path(config.train.output) / ANSWERS, source.task, rows, each)
    written = wording(text for _, text in rows) if source.task == "caption" else {}
    return {"validation_loss": loss_per_token, SCORES[source.task][0]: score, **written}


def _write_answers(path: Path, task: str, rows: list[tuple[Conversation, str]], scores: list[float]) -> None:
    lines = []
    for (one, text), score in zip(rows, scores, strict=True):
        shown = text if task == "caption" else f"{one.turns[-1].question} {text}"
        row = {"id": one.id, "text": shown, "references": one.answers, "score": score}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _score(task: str, rows: list[tuple[Conversation, str]]) -> tuple[float, list[float]]:
    """x100, of conversations with what was answered: of all, and of each."""
    if task == "caption":
        references = {one.id: list(one.answers) for one, _ in rows}
        result = score_captions({one.id: text for one, text in rows}, references, ["CIDEr"])
        if result.failed:
            raise DataError(f"The validation images cannot be scored: {result.failed['CIDEr']}")
        return result.scores["CIDEr"], [result.per_image["CIDEr"][one.id] for one, _ in rows]
    if task == "vqa":
        each = [100 * accuracy(text, one.answers) for one, text in rows]
    else:
        each = [100.0 * (extract_choice(text, len(LETTERS)) == one.right) for one, text in rows]
    return sum(each) / len(rows), each
