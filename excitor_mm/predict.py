"""Captions for every sample of shards, by one process or many, into predictions.jsonl.

predictions.jsonl          lines {"image_id", "key", "caption"}, each image once
predictions.meta.json      adapter, shards, prompt and decoding, for the report
predictions.rank<r>.jsonl  what process r of several has written so far; joined at the end
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from excitor_mm.config import DecodingConfig
from excitor_mm.console import Progress, log
from excitor_mm.data.images import load_image
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.shards import expected_samples, list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.errors import DataError
from excitor_mm.files import read_json, write_json, write_text
from excitor_mm.model import ExcitorModel
from excitor_mm.references import Id, read_predictions


def predict(
    model: ExcitorModel,
    shards: str,
    output: Path,
    *,
    adapter: str,
    batch_size: int = 16,
    workers: int = 2,
    prompt: str | None = None,
    decoding: DecodingConfig | None = None,
    overwrite: bool = False,
) -> int:
    """Caption every sample of the shards once.

    An interrupted run goes on where it stopped, with any number of processes. Under `accelerate launch` or
    torchrun the processes share the samples.

    Args:
        model: from `ExcitorModel.from_pretrained`.
        shards: see `list_shards`.
        output: predictions.jsonl.
        adapter: its name, for the report.
        batch_size: images at a time and process.
        workers: processes that decode, for each process that captions.
        prompt, decoding: replace the adapter's own.
        overwrite: start anew.

    Returns:
        Number of predictions in the file.

    Raises:
        DataError: other predictions in the file, or samples that could not be read.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=model.device.type == "cpu")
    decoding = decoding or model.config.decoding
    text = prompt or model.processor.prompt
    expected = expected_samples(shards)
    if state.is_main_process:
        meta = {"adapter": adapter, "shards": shards, "prompt": text, "decoding": dataclasses.asdict(decoding)}
        _claim(output, meta, overwrite)
    state.wait_for_everyone()
    done = _ids(output)
    stream = EvaluationStream(
        list_shards(shards),
        _Prepare(model.tower.transform()),
        list,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        skip_ids=done,
    )
    bad = 0
    remaining = None if expected is None else (expected - len(done)) // state.num_processes
    with (
        _part(output, state.process_index).open("a", encoding="utf-8") as file,
        Progress("captioning", remaining, "images") as bar,
    ):
        for item in read_stream(stream, workers):
            for record in item.bad:
                log(f"bad sample {record.key} in {record.shard}: {record.reason}")
            bad += len(item.bad)
            if not item.batch:
                continue
            ids, keys, pixels = zip(*item.batch, strict=True)
            inputs = model.processor.collate([text] * len(ids), pixels)
            captions = model.processor.batch_decode(model.generate(**inputs, decoding=decoding))
            for image_id, key, caption in zip(ids, keys, captions, strict=True):
                row = {"image_id": image_id, "key": key, "caption": caption}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.advance(len(ids))
        os.fsync(file.fileno())
    bad = sum(gather_object([bad]))
    if state.is_main_process:
        _join(output)
    state.wait_for_everyone()
    count = len(_ids(output))
    if bad or (expected is not None and count != expected):
        raise DataError(
            f"{count} of {expected} samples of {shards} are captioned, {bad} cannot be read: "
            "run `excitor-mm shards check`."
        )
    return count


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """The transform of an evaluation stream: a sample to (image id, key, pixels)."""

    transform: Callable[[Any], list[Tensor]]

    def __call__(self, sample: Sample, epoch: int) -> tuple[Id, str, list[Tensor]]:
        if sample.image is None:
            raise BadSample("no image", f"{sample.shard}: sample {sample.key} has no image.")
        return sample.image_id, sample.key, self.transform(load_image(sample.image))


def _part(output: Path, rank: int | str) -> Path:
    return output.with_name(f"{output.stem}.rank{rank}.jsonl")


def _ids(output: Path) -> frozenset[Id]:
    return frozenset(read_predictions(output)) if output.exists() and output.stat().st_size else frozenset()


def _claim(output: Path, meta: dict[str, Any], overwrite: bool) -> None:
    """Refuse the predictions of other settings; join what an interrupted run left."""
    meta_path = output.with_suffix(".meta.json")
    if overwrite:
        for path in (output, *output.parent.glob(_part(output, "*").name)):
            path.unlink(missing_ok=True)
    if not output.exists() and not list(output.parent.glob(_part(output, "*").name)):
        write_json(meta_path, meta)
    elif not meta_path.exists() or read_json(meta_path) != meta:
        raise DataError(f"{output} holds predictions of other settings: add --overwrite or change --output.")
    _join(output)


def _join(output: Path) -> None:
    """Append the parts to the output; a line that was cut off is left out and predicted again.

    Raises:
        DataError: an image was captioned twice.
    """
    parts = sorted(output.parent.glob(_part(output, "*").name))
    lines = _whole_lines(output)
    joined = frozenset(lines)  # killed between writing and deleting, the last run left rows in both
    lines += [line for path in parts for line in _whole_lines(path) if line not in joined]
    twice = [i for i, count in Counter(json.loads(line)["image_id"] for line in lines).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} images are twice in the shards {twice[:5]}: pack each image once.")
    write_text(output, "".join(line + "\n" for line in lines))
    for path in parts:
        path.unlink()


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]
