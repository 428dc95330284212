"""What a run lives through: damaged checkpoints, signals, numbers that are not finite, another run in its folder."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from excitor_mm.adapter import TENSORS
from excitor_mm.checkpoint import read_checkpoint, write_checkpoint
from excitor_mm.config import RunConfig
from excitor_mm.data.pipeline import IGNORE
from excitor_mm.errors import DataError, Stopped
from excitor_mm.files import hold
from excitor_mm.prepare import build_for_training
from excitor_mm.step import train_step
from excitor_mm.train import make_optimizer, train
from tests.invariants.test_training import batches, change


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_checkpoint_cut_off_at_any_byte_is_left_for_the_one_before(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(3)}, keep=2)
    path = tmp_path / "checkpoints" / "step-00000002" / name
    whole = path.read_bytes()
    assert read_checkpoint(tmp_path)["step"] == 2
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert read_checkpoint(tmp_path)["step"] == 1
        path.write_bytes(whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :])
        assert read_checkpoint(tmp_path)["step"] == 1
    path.unlink()
    assert read_checkpoint(tmp_path)["step"] == 1
    (tmp_path / "checkpoints" / "step-00000001" / name).write_bytes(b"")
    with pytest.raises(DataError, match="No checkpoint"):
        read_checkpoint(tmp_path)


def test_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 100):
        write_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000100"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(run_config: RunConfig, tmp_path: Path, number: signal.Signals) -> None:
    whole = change(run_config, output=str(tmp_path / "whole"), steps=30)
    train(whole)
    cut = change(whole, output=str(tmp_path / "cut"))
    before = signal.getsignal(number)

    def send_when_training() -> None:
        while signal.getsignal(number) == before:
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_training)
    sender.start()
    with pytest.raises(Stopped, match=r"after step \d+ and saved.*--resume") as caught:
        train(cut)
    sender.join()
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) == before
    assert read_checkpoint(tmp_path / "cut")["step"] < 30
    train(cut, resume=True)
    expected, found = (load_file(tmp_path / run / "best" / TENSORS) for run in ("whole", "cut"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_sample_that_is_not_a_number_is_named_and_stops_the_run(poisoned: RunConfig) -> None:
    with pytest.raises(DataError, match=r"loss is nan .* on \['000000000006'\].*nonfinite"):
        train(poisoned)


def test_a_step_that_is_not_a_number_is_left_out(poisoned: RunConfig) -> None:
    output = train(change(poisoned, batch_size=4, steps=6, nonfinite="skip")).parent
    assert 0 < read_checkpoint(output)["left_out"] < 6
    assert all(tensor.isfinite().all() for tensor in load_file(output / "best" / TENSORS).values())


def test_loss_scaling_finds_its_scale_without_losing_a_step(run_config: RunConfig) -> None:
    """In float16, from a scale that overflows, the step is that of float32 within half precision."""
    half = dataclasses.replace(run_config, language=dataclasses.replace(run_config.language, dtype="float16"))
    results = []
    for config, scale in ((run_config, 1.0), (half, 2.0**40)):
        torch.manual_seed(0)
        model, accelerator = build_for_training(config), Accelerator(cpu=True)
        assert {p.dtype for p in model.trainables().values()} == {torch.float32}
        window = batches(config, model, 8)
        tokens = sum(int((batch.inputs["labels"][:, 1:] != IGNORE).sum()) for batch in window)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=config is half)
        facts = train_step(model, make_optimizer(model, config), window, tokens, accelerator, config, scaler)
        assert facts.applied
        results.append(facts)
    assert 1 < scaler.get_scale() < 2.0**40
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-2)
    assert results[1].norm == pytest.approx(results[0].norm, rel=5e-2)


def test_two_runs_in_one_folder_are_refused(run_config: RunConfig) -> None:
    output = Path(run_config.train.output)
    with hold(output), pytest.raises(DataError, match="in use"):
        train(run_config, overwrite=True)
    assert train(run_config) == output / "best"
