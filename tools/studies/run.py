"""One run of a study: train, caption the test photos, score, and read a text. Every step is the project's own code.

    <folder>/run.json            what the run is
    <folder>/training/           the run folder of `excitor_mm.train`
    <folder>/training.json       peak memory, written when training has ended
    <folder>/predictions.jsonl   of the test photos, by best/, in float32 on a CPU as `excitor-mm predict` does
    <folder>/report.json         its scores, with the captions moved to other images as a control
    <folder>/forgetting/         perplexity of the text by the base and the trained model, without an image
    <folder>/result.json         all figures; a run that has it is never repeated

A run that was interrupted goes on: training from its checkpoint, captioning from the last whole line.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import statistics
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from baselines import build_baseline
from suites.measure import machine
from suites.memory import peak

from excitor_mm.checkpoint import CHECKPOINTS, check_same, plain
from excitor_mm.config import RunConfig
from excitor_mm.console import log
from excitor_mm.errors import DataError, ExcitorError, Stopped
from excitor_mm.evaluate.captions import evaluate_captions
from excitor_mm.files import read_json, read_rows, write_json
from excitor_mm.forgetting import measure_forgetting
from excitor_mm.language import choose_device
from excitor_mm.model import ExcitorModel
from excitor_mm.parallel import StopSignals
from excitor_mm.predict import predict
from excitor_mm.prepare import Build, build_excitor, build_for_training
from excitor_mm.train import train
from excitor_mm.validate import SCORES

SCORE = SCORES["caption"][0]
METRICS = ("BLEU", "ROUGE-L", "CIDEr")  # METEOR takes longer than all of them: `evaluate captions` adds it later


@dataclass(frozen=True)
class Run:
    """What is trained and tested."""

    folder: Path
    """Of the run; `config.train.output` lies in it."""
    baseline: str | None
    """See `build_baseline`; None: Excitor."""
    size: int | None
    """Of the baseline."""
    config: RunConfig
    """Of the training."""
    test: str
    """Shards that are captioned and scored."""
    text: Path
    """File whose perplexity is taken."""

    def facts(self) -> dict[str, Any]:
        """What run.json holds."""
        kind = {"baseline": self.baseline, "size": self.size, "test": self.test, "text": self.text.name}
        return {**plain(self.config), **kind}


def finished(run: Run) -> dict[str, Any] | None:
    """Its figures; None: it is not finished.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    begun = run.folder / "run.json"
    if begun.exists():
        check_same(read_json(begun), run.facts(), begun)
    path = run.folder / "result.json"
    return read_json(path) if path.exists() else None


def complete(run: Run) -> None:
    """Do what is still missing of a run, in this process; see above.

    Raises:
        ExcitorError: what training, captioning or scoring raises.
    """
    write_json(run.folder / "run.json", run.facts())
    build = functools.partial(build_baseline, run.baseline, size=run.size) if run.baseline else build_excitor
    training, trained = run.folder / "training", run.folder / "training.json"
    if not trained.exists():
        resume = any((training / CHECKPOINTS).glob("step-*"))
        train(run.config, resume=resume, overwrite=not resume, build=build)
        write_json(trained, {"peak_mib": peak() / 2**20})
    model = _restore(run.config, build, training / "best")
    name = "/".join(run.folder.parts[-3:])
    predictions = run.folder / "predictions.jsonl"
    predict(model, run.test, predictions, adapter=name, workers=run.config.data.workers)
    scored = run.folder / "report.json"
    report = evaluate_captions(predictions, run.test, output=scored, metrics=METRICS, shuffled_control=True)
    read = measure_forgetting(model, run.text, run.folder / "forgetting", adapter=name)
    rows = read_rows(training / "metrics.jsonl")
    result = {
        "baseline": run.baseline,
        "size": run.size,
        "prompt": model.config.prompts.templates["caption"],
        "palette": model.config.prompts.palette,
        "rate": run.config.train.learning_rate,
        "seed": run.config.train.seed,
        "trainables": sum(p.numel() for p in model.trainables().values()),
        "validation": max(row[SCORE] for row in rows if SCORE in row),
        "scores": report["scores"],
        "intervals": report["intervals"],
        "shuffled": report["shuffled_control"]["CIDEr"],
        "perplexity": read["perplexity"],
        "read": {"scores": read["scores"], "intervals": read["intervals"]},
        "step_seconds": statistics.median(row["step_seconds"] for row in rows if "step_seconds" in row),
        "frozen_tensors_changed": rows[-1]["frozen_tensors_changed"],
        "machine": machine(),
        **read_json(trained),
    }
    write_json(run.folder / "result.json", result)


def _restore(config: RunConfig, build: Build, best: Path) -> ExcitorModel:
    """The model of a run with its best tensors, in the precision of `ExcitorModel.from_pretrained`."""
    place = choose_device(config.train.device)
    language = dataclasses.replace(config.language, dtype="float32" if place.type == "cpu" else config.language.dtype)
    settings = dataclasses.replace(config.train, gradient_checkpointing=False)
    model = build_for_training(dataclasses.replace(config, language=language, train=settings), build)
    model.load_tensors(best)
    return model.to(place)


def in_a_process(run: Run) -> None:
    """`complete` in a process of its own, so that the peak memory is the run's.

    Raises:
        Stopped: a signal came; it was passed on, and the run can go on from where it is.
        DataError: the run failed, and has said why.
    """
    process = multiprocessing.get_context("spawn").Process(target=_alone, args=(run,))
    with StopSignals() as signals:
        process.start()
        while process.is_alive():
            process.join(1.0)
            if signals.received:
                process.terminate()
    if signals.received:
        raise Stopped("Stopped: the same command goes on from here.", signals.received)
    if process.exitcode:
        raise DataError(
            f"The run {run.folder} ended with status {process.exitcode}: see the lines above; the same command goes "
            "on from there."
        )


def _alone(run: Run) -> None:
    """The whole life of the process."""
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    try:
        complete(run)
    except ExcitorError as error:
        log(f"study: {error}")
        sys.exit(error.status)


def _end_with_the_study() -> None:
    """A study that is killed leaves no run behind that goes on writing."""
    study = multiprocessing.parent_process()
    assert study is not None
    wait([study.sentinel])
    os._exit(1)
