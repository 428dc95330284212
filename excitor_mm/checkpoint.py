"""The run folder: claiming it, and what a run remembers between two steps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from excitor_mm.config import RunConfig
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.model import ExcitorModel

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.yaml"


def check_folder(output: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Refuse a run folder that is in use, cannot be written, or holds something else than the run it should."""
    parent = next(folder for folder in (output, *output.parents) if folder.exists())
    if not parent.is_dir():
        raise ConfigError(f"train.output is {output}, but {parent} is a file: choose a folder.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise DataError(f"{parent} cannot be written ({error.strerror}): change train.output.") from error
    if resume:
        if not (output / CHECKPOINT).exists():
            raise ConfigError(f"{output} has no {CHECKPOINT} to resume from: start it without --resume.")
        if (output / CONFIG).read_text(encoding="utf-8") != _as_yaml(config):
            raise ConfigError(
                f"The configuration differs from {output / CONFIG}: resume with the same one, or start a new run."
            )
    elif output.exists() and any(output.iterdir()):
        if not overwrite:
            raise ConfigError(f"{output} holds a run already: add --resume or --overwrite, or change train.output.")
        if not (output / CONFIG).exists():
            raise ConfigError(
                f"{output} has no {CONFIG}, so it is no run, and --overwrite would delete it: change train.output."
            )


def claim_folder(output: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Make the run folder, after `check_folder`; with `overwrite` an older run is deleted."""
    check_folder(output, config, resume, overwrite)
    if resume:
        return
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / CONFIG).write_text(_as_yaml(config), encoding="utf-8")


def _as_yaml(config: RunConfig) -> str:
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False)


class RunState:
    """What a run remembers: position, best score, and how to write them down."""

    def __init__(
        self, model: ExcitorModel, optimizer: torch.optim.Optimizer, output: Path, scores: Sequence[str] = ()
    ) -> None:
        """`scores`: what validation measures, in words; the first one chooses best/."""
        self.model, self.optimizer, self.output, self.scores = model, optimizer, output, scores
        self.step, self.best, self.stale = 0, -math.inf, 0

    def save(self) -> None:
        """The last adapter and the checkpoint, each replaced in one move."""
        self.model.save_pretrained(self.output / "last", self.facts())
        tensors: dict[str, Tensor] = {name: p.detach() for name, p in self.model.trainables().items()}
        facts = {"step": self.step, "best": self.best, "stale": self.stale}
        fresh = self.output / f".{CHECKPOINT}"
        with fresh.open("wb") as file:
            torch.save({"trainables": tensors, "optimizer": self.optimizer.state_dict(), **facts}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.output / CHECKPOINT)

    def load(self) -> None:
        """Go on where `save` was called last."""
        saved = torch.load(self.output / CHECKPOINT, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in self.model.trainables().items():
                parameter.copy_(saved["trainables"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.stale = saved["step"], saved["best"], saved["stale"]

    def forget_later_metrics(self) -> None:
        """Drop lines of metrics.jsonl that were written after the checkpoint: those steps come again."""
        path = self.output / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            path.write_text("".join(kept), encoding="utf-8")

    def note(self, accelerator: Accelerator, facts: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the trackers."""
        if accelerator.is_main_process:
            with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **facts}) + "\n")
            accelerator.log(facts, step=self.step)

    def judge(self, score: float, accelerator: Accelerator) -> None:
        """Keep the adapter if it is the best so far."""
        self.stale = 0 if score > self.best else self.stale + 1
        if score > self.best:
            self.best = score
            if accelerator.is_main_process:
                self.model.save_pretrained(self.output / "best", self.facts())

    def out_of_patience(self, patience: int | None) -> bool:
        """True when the last `patience` validations brought nothing better."""
        return patience is not None and self.stale >= patience

    def facts(self) -> dict[str, str]:
        """For people who open the adapter."""
        validated = math.isfinite(self.best)
        best = {f"best validation {self.scores[0]}": f"{self.best:.4g}"} if validated else {"validation": "none yet"}
        return {"steps": str(self.step), **best, "run": self.output.name}
