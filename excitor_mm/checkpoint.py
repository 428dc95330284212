"""The run folder: claiming it, and what a run remembers between two steps.

    checkpoints/step-00000100/state.pt        trainables, optimizer, loss scale, counters
    checkpoints/step-00000100/manifest.json   its size and sha256

A checkpoint is written to a temporary folder, flushed and renamed. One that is cut off or damaged all the same is
recognised by its manifest, and the one before is used. Nothing else is needed to go on: the samples of a step and
its random numbers are functions of (seed, step).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from excitor_mm.config import RunConfig
from excitor_mm.console import log
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.files import LOCK, read_json, recover_folder, write_folder, write_text
from excitor_mm.model import ExcitorModel

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
FREE = {
    "data": ("workers",),
    "train": ("output", "accumulation", "save_every", "keep", "log_every", "device", "trackers", "nonfinite")
    + ("gradient_checkpointing", "shard_frozen"),
}
"""Keys that a resumed run may change: neither the samples of a step nor what is learnt from them depends on these."""


def check_folder(output: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Refuse a run folder that cannot be written, or holds something else than the run it should."""
    parent = next(folder for folder in (output, *output.parents) if folder.exists())
    if not parent.is_dir():
        raise ConfigError(f"train.output is {output}, but {parent} is a file: choose a folder.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise DataError(f"{parent} cannot be written ({error.strerror}): change train.output.") from error
    if resume:
        if not any(_checkpoints(output)):
            raise ConfigError(f"{output} has no checkpoint to resume from: start it without --resume.")
        check_same(yaml.safe_load((output / CONFIG).read_text(encoding="utf-8")), plain(config), output / CONFIG)
    elif _holds(output):
        if not overwrite:
            raise ConfigError(f"{output} holds a run already: add --resume or --overwrite, or change train.output.")
        if not (output / CONFIG).exists():
            raise ConfigError(
                f"{output} has no {CONFIG}, so it is no run, and --overwrite would delete it: change train.output."
            )


def claim_folder(output: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Make the run folder ready, after `check_folder`; with `overwrite` an older run is deleted."""
    check_folder(output, config, resume, overwrite)
    if resume:
        for name in ("best", "last", f"{CHECKPOINTS}/step"):
            recover_folder(output / name)
    else:
        for item in _holds(output):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
    write_text(output / CONFIG, yaml.safe_dump(plain(config), sort_keys=False))


def _holds(output: Path) -> list[Path]:
    """What lies in the folder, but for the lock."""
    return [item for item in output.iterdir() if item.name != LOCK] if output.exists() else []


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as a file holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_same(saved: Any, values: dict[str, Any], path: Path) -> None:
    """Refuse to go on with other settings than those saved in `path`, naming them; keys of `FREE` may differ.

    Raises:
        ConfigError: there are some.
    """
    changed = [
        f"{group}.{key}"
        for group, wanted in values.items()
        for key in (wanted if isinstance(wanted, dict) else [""])
        if key not in FREE.get(group, ()) and _part(saved, group, key) != (wanted[key] if key else wanted)
    ]
    if changed:
        raise ConfigError(
            f"The configuration differs from {path} in {', '.join(key.rstrip('.') for key in changed)}: "
            "resume with the same one, or start a new run."
        )


def _part(saved: Any, group: str, key: str) -> Any:
    part = saved.get(group) if isinstance(saved, dict) else None
    return part.get(key) if key and isinstance(part, dict) else part


def _checkpoints(output: Path) -> Iterator[Path]:
    """Latest first."""
    return iter(sorted((output / CHECKPOINTS).glob("step-*"), reverse=True))


def write_checkpoint(output: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write one checkpoint, and delete all but the latest `keep`.

    Raises:
        DataError: no space, or no permission; what was there stays.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = json.dumps({"step": step, "state.pt": facts}).encode()
    write_folder(output / CHECKPOINTS / f"step-{step:08d}", {"state.pt": content, "manifest.json": manifest})
    for old in list(_checkpoints(output))[max(1, keep) :]:
        shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(output: Path) -> dict[str, Any]:
    """The latest checkpoint that is whole.

    Raises:
        DataError: none is.
    """
    for folder in _checkpoints(output):
        try:
            facts = read_json(folder / "manifest.json")["state.pt"]
            content = (folder / "state.pt").read_bytes()
            if len(content) != facts["bytes"] or hashlib.sha256(content).hexdigest() != facts["sha256"]:
                raise ValueError("its checksum differs")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (OSError, DataError, ValueError, KeyError, TypeError) as error:
            log(f"checkpoint {folder.name} is cut off or damaged ({error}); going on from the one before")
    raise DataError(f"No checkpoint in {output / CHECKPOINTS} is whole: start the run anew with --overwrite.")


class RunState:
    """What a run remembers: position, best score, and how to write them down."""

    def __init__(
        self,
        model: ExcitorModel,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        output: Path,
        scores: Sequence[str] = (),
    ) -> None:
        """`scores`: what validation measures, in words; the first one chooses best/."""
        self.model, self.optimizer, self.scaler, self.output, self.scores = model, optimizer, scaler, output, scores
        self.step, self.best, self.stale, self.left_out = 0, -math.inf, 0, 0

    def save(self, keep: int) -> None:
        """The last adapter and a checkpoint, each in one move."""
        self.model.save_pretrained(self.output / "last", self.facts())
        tensors: dict[str, Tensor] = {name: p.detach() for name, p in self.model.trainables().items()}
        state = {"trainables": tensors, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        counters = {"step": self.step, "best": self.best, "stale": self.stale, "left_out": self.left_out}
        write_checkpoint(self.output, self.step, {**state, **counters}, keep)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        with torch.no_grad():
            for name, parameter in self.model.trainables().items():
                parameter.copy_(saved["trainables"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        for name in ("step", "best", "stale", "left_out"):
            setattr(self, name, saved[name])

    def forget_later_metrics(self) -> None:
        """Drop lines of metrics.jsonl that were written after the checkpoint: those steps come again."""
        path = self.output / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
            write_text(path, "".join(kept))

    def note(self, accelerator: Accelerator, facts: Mapping[str, float | list[float]]) -> None:
        """One line of metrics.jsonl, and the trackers; lists are for the file alone."""
        if accelerator.is_main_process:
            path = self.output / "metrics.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.step, **facts}) + "\n")
            except OSError as error:
                raise DataError(f"{path} cannot be written ({error.strerror}): free some space.") from error
            accelerator.log({k: v for k, v in facts.items() if not isinstance(v, list)}, step=self.step)

    def judge(self, score: float) -> bool:
        """Count a validation; True when it is the best so far."""
        better = score > self.best
        self.best, self.stale = max(score, self.best), 0 if better else self.stale + 1
        return better

    def out_of_patience(self, patience: int | None) -> bool:
        """True when the last `patience` validations brought nothing better."""
        return patience is not None and self.stale >= patience

    def facts(self) -> dict[str, str]:
        """For people who open the adapter."""
        validated = math.isfinite(self.best)
        best = {f"best validation {self.scores[0]}": f"{self.best:.4g}"} if validated else {"validation": "none yet"}
        known = self.model.config.training  # what it is trained on
        return {**known, "steps": str(self.step), **best, "run": self.output.name}
