"""Captions or answers for every sample of shards, by one process or many, into predictions.jsonl.

predictions.jsonl          lines {"image_id", "key", "caption"} or {"question_id", "key", "answer"}, each id once
predictions.meta.json      adapter, its training stage, shards, task, prompt and decoding, for the report
predictions.rank<r>.jsonl  what process r of several has written so far; joined at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from excitor_mm.adapter import THEN, fingerprint
from excitor_mm.answer import Answer, Asked, answer, describe
from excitor_mm.config import DecodingConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.images import load_image
from excitor_mm.data.pipeline import TaskFormat
from excitor_mm.data.samples import Sample
from excitor_mm.data.shards import expected_samples, list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.errors import DataError
from excitor_mm.files import hold, read_json, write_json, write_text
from excitor_mm.model import ExcitorModel
from excitor_mm.queries import Prepared, Query, read_items
from excitor_mm.references import Id, read_answers, read_predictions


def predict(
    model: ExcitorModel,
    asked: str | Sequence[Query],
    output: Path,
    *,
    adapter: str,
    source: str = "",
    task: str | None = None,
    batch_size: int = 16,
    workers: int = 2,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
    base: bool = False,
    other_images: bool = False,
    overwrite: bool = False,
) -> int:
    """Answer everything that the samples of shards, or the questions of a file, ask; once.

    An interrupted run goes on where it stopped, with any number of processes. Under `accelerate launch` or
    torchrun the processes share the samples.

    Args:
        model: from `ExcitorModel.from_pretrained`.
        asked: shards (see `list_shards`), or questions from `read_queries`.
        output: predictions.jsonl.
        adapter: its name, for the report.
        source: name of the file of questions, for the report.
        task: one of the adapter's; None: its first.
        batch_size: questions at a time and process.
        workers: processes that decode, for each process that answers.
        prompt, decoding: replace the adapter's own template and decoding.
        base: ask the frozen language model, without the adapter and without images.
        other_images: the control: every sample gets the image of another one.
        overwrite: start anew.

    Returns:
        Number of predictions in the file.

    Raises:
        DataError: other predictions in the file, another process at work on it, or samples that could not be read.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=model.device.type == "cpu")
    decoding = decoding or model.config.decoding
    tasks = model.task_format(task or next(iter(model.config.prompts.templates)))
    if prompt is not None:
        tasks = dataclasses.replace(tasks, form=dataclasses.replace(tasks.form, template=prompt))
    rows = CAPTIONS if tasks.task == "caption" else ANSWERS
    name = asked if isinstance(asked, str) else source
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            meta: dict[str, Any] = {"adapter": adapter, "shards": name, "task": tasks.task}
            meta |= {
                "adapter_fingerprint": fingerprint(model.trainables().items()),
                "stage": "none" if base else THEN.join(model.config.stages),
                "prompt": tasks.form.template,
                "decoding": dataclasses.asdict(decoding),
                "base": base,
                "other_images": other_images,
            }
            stack.enter_context(hold(output.parent, f".{output.name}.lock"))
            _claim(output, meta, rows, overwrite)
        state.wait_for_everyone()
        done = rows.ids(output)
        expected = expected_samples(asked, tasks.task == "vqa") if isinstance(asked, str) else len(asked)
        shares = {"batch_size": batch_size, "rank": state.process_index, "world_size": state.num_processes}
        if isinstance(asked, str):
            prepare = _Prepare(model.tower.transform(), tasks, done)
            items = read_stream(EvaluationStream(list_shards(asked), prepare, list, **shares), workers)
        else:
            items = read_items([query for query in asked if query.conversation.id not in done], model, **shares)
        remaining = None if expected is None else (expected - len(done)) // state.num_processes
        bad, shortened = 0, 0
        with (
            _part(output, state.process_index).open("a", encoding="utf-8") as file,
            Progress("captioning" if rows is CAPTIONS else "answering", remaining, rows.things) as bar,
            model.base_model() if base else contextlib.nullcontext(),
        ):
            for item in items:
                bad += len(item.bad)
                batch = _with_images(item.batch or [], base, other_images)
                if tasks.form.describes:  # here all questions about an image are together
                    described = describe(model, [one for _, one in batch], decoding)
                    batch = [(key, one) for (key, _), one in zip(batch, described, strict=True)]
                for start in range(0, len(batch), batch_size):
                    keys, chunk = zip(*batch[start : start + batch_size], strict=True)
                    answers = answer(model, tasks, chunk, decoding)
                    shortened += sum(said.shortened for said in answers)
                    for key, one, said in zip(keys, chunk, answers, strict=True):
                        file.write(rows.line(one.conversation.id, key, said) + "\n")
                    file.flush()
                    bar.advance(len(chunk))
            os.fsync(file.fileno())
        bad, shortened = sum(gather_object([bad])), sum(gather_object([shortened]))
        if shortened and state.is_main_process:
            log(f"{shortened} prompts were too long: the end of their context was left out.")
        if state.is_main_process:
            _join(output, rows)
        state.wait_for_everyone()
        count = len(rows.ids(output))
        if bad or (expected is not None and count != expected):
            raise DataError(
                f"{count} of {expected} {rows.things} of {name} are answered, {bad} samples cannot be read: "
                "see the lines above, or run `excitor-mm shards check`."
            )
        return count


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """The transform of an evaluation stream: a sample to its open conversations."""

    transform: Callable[[Any], list[Tensor]]
    tasks: TaskFormat
    done: frozenset[Id]

    def __call__(self, sample: Sample, epoch: int) -> Prepared:
        found = [one for one in self.tasks.conversations(sample) if one.id not in self.done]
        pixels = self.transform(load_image(sample.image)) if found and sample.image is not None else None
        return Prepared(sample.key, [Asked(one, pixels) for one in found])


def _with_images(batch: list[Prepared], base: bool, other_images: bool) -> list[tuple[str, Asked]]:
    """(key, question) of a batch; with `other_images` each sample has the image of the one before it."""
    batch = [prepared for prepared in batch if prepared.asked]
    if other_images and len(batch) == 1:
        raise DataError("A single sample is left in the last batch, and no other image for it: change --batch-size.")
    pixels = [None if base else prepared.asked[0].pixels for prepared in batch]
    if other_images:
        pixels = pixels[-1:] + pixels[:-1]
    return [
        (prepared.key, one._replace(pixels=image))
        for prepared, image in zip(batch, pixels, strict=True)
        for one in prepared.asked
    ]


class _Rows(NamedTuple):
    """The lines of predictions.jsonl."""

    things: str
    id_name: str
    text_name: str
    read: Callable[[Path], dict[Id, str]]

    def line(self, id_: Id, key: str, said: Answer) -> str:
        """One prediction as JSON."""
        row: dict[str, Any] = {self.id_name: id_, "key": key, self.text_name: said.text}
        if said.caption:
            row["caption"] = said.caption
        if said.log_likelihoods:
            row["log_likelihoods"] = [round(value, 4) for value in said.log_likelihoods]
        return json.dumps(row, ensure_ascii=False)

    def ids(self, output: Path) -> frozenset[Id]:
        """What is predicted already."""
        return frozenset(self.read(output)) if output.exists() and output.stat().st_size else frozenset()


CAPTIONS = _Rows("images", "image_id", "caption", read_predictions)
ANSWERS = _Rows("questions", "question_id", "answer", read_answers)


def _part(output: Path, rank: int | str) -> Path:
    return output.with_name(f"{output.stem}.rank{rank}.jsonl")


def _claim(output: Path, meta: dict[str, Any], rows: _Rows, overwrite: bool) -> None:
    """Refuse the predictions of other settings; join what an interrupted run left."""
    meta_path = output.with_suffix(".meta.json")
    if overwrite:
        for path in (output, *output.parent.glob(_part(output, "*").name)):
            path.unlink(missing_ok=True)
    if not output.exists() and not list(output.parent.glob(_part(output, "*").name)):
        write_json(meta_path, meta)
    elif not meta_path.exists() or read_json(meta_path) != meta:
        raise DataError(f"{output} holds predictions of other settings: add --overwrite or change --output.")
    _join(output, rows)


def _join(output: Path, rows: _Rows) -> None:
    """Append the parts to the output; a line that was cut off is left out and predicted again.

    Raises:
        DataError: something was answered twice.
    """
    parts = sorted(output.parent.glob(_part(output, "*").name))
    lines = _whole_lines(output)
    joined = frozenset(lines)  # killed between writing and deleting, the last run left rows in both
    lines += [line for path in parts for line in _whole_lines(path) if line not in joined]
    twice = [i for i, count in Counter(json.loads(line)[rows.id_name] for line in lines).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} {rows.things} are twice in the shards {twice[:5]}: pack each once.")
    write_text(output, "".join(line + "\n" for line in lines))
    for path in parts:
        path.unlink()


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]
