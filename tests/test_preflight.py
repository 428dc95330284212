"""What would end a run late ends it, or its dry run, before the first step; --overwrite deletes runs only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excitor_mm.config import RunConfig
from excitor_mm.errors import ConfigError, DataError, DependencyError, ExcitorError
from excitor_mm.preflight import preflight
from excitor_mm.train import train
from tests.conftest import make_shards


def change(config: RunConfig, part: str, **values: Any) -> RunConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})


def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excitor_mm.metrics.java._candidate", lambda: None)


def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


LATE: list[tuple[str, dict[str, Any], Callable[[pytest.MonkeyPatch], None], type[ExcitorError], str]] = [
    ("data", {"train": "none"}, untouched, DataError, "does not exist"),
    ("data", {"validation": "none"}, untouched, DataError, "does not exist"),
    ("data", {"validation": "{train}"}, no_java, DependencyError, "No Java"),
    ("language", {"path": "/nowhere"}, untouched, ConfigError, "cannot be loaded"),
    ("excitor", {"layers": 9}, untouched, ConfigError, "3 layers"),
    ("prompt", {"template": "x"}, untouched, ConfigError, r"1 token"),
    ("train", {"accumulation": 3}, untouched, ConfigError, "does not divide"),
    ("train", {"device": "cuda"}, untouched, ConfigError, "no GPU"),
    ("train", {"trackers": ["tensorboard"]}, no_tensorboard, DependencyError, r"excitor-mm\[tensorboard\]"),
    ("train", {"output": "{file}"}, untouched, ConfigError, "is a file"),
    ("train", {"output": "/proc/run"}, untouched, DataError, "cannot be written"),
    ("train", {"output": "{full}"}, untouched, ConfigError, "holds a run already"),
]


@pytest.mark.parametrize("begin", [preflight, train])
@pytest.mark.parametrize(("part", "values", "spoil", "kind", "sentence"), LATE)
def test_late_failures_come_early(
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[RunConfig], object],
    part: str,
    values: dict[str, Any],
    spoil: Callable[[pytest.MonkeyPatch], None],
    kind: type[ExcitorError],
    sentence: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.yaml").touch()
    places = {"{train}": run_config.data.train, "{file}": str(tmp_path / "file"), "{full}": str(tmp_path / "full")}
    values = {key: places.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
    config = change(run_config, part, **values)
    spoil(monkeypatch)
    with pytest.raises(kind, match=sentence):
        begin(config)
    assert not (tmp_path / "run").exists()


def test_overwrite_deletes_nothing_but_runs(run_config: RunConfig, tmp_path: Path) -> None:
    precious = make_shards(tmp_path / "precious", [2])
    config = change(run_config, "train", output=str(precious))
    for begin in (preflight, train):
        with pytest.raises(ConfigError, match=r"no config\.yaml"):
            begin(config, overwrite=True)
    assert len(list(precious.iterdir())) == 2
    steps = change(run_config, "train", steps=1)
    train(steps)
    (tmp_path / "run" / "old").touch()
    train(steps, overwrite=True)
    assert not (tmp_path / "run" / "old").exists()


def test_tensorboard_reads_what_training_wrote(run_config: RunConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(change(run_config, "train", trackers=["tensorboard"], log_every=1))
    board = EventAccumulator(str(tmp_path / "run" / "excitor-mm"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]
