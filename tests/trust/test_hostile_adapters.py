"""Adapter folders and configurations from strangers, and an adapter that is replaced while it is read."""

from __future__ import annotations

import json
import pickle
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from excitor_mm.adapter import CONFIG, TENSORS, load_config, load_tensors, save_adapter
from excitor_mm.cli import main
from excitor_mm.config import RunConfig
from excitor_mm.errors import AdapterError
from excitor_mm.prepare import build_for_training
from tests.trust.test_hostile import Bomb, replaced


@pytest.fixture
def adapter(run_config: RunConfig, tmp_path: Path) -> Path:
    build_for_training(run_config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def hostile_tensors(kind: str, good: bytes) -> bytes:
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    if kind == "huge header":
        return struct.pack("<Q", 2**62) + good[8:]
    if kind == "overlapping offsets":
        for facts in header.values():
            facts["data_offsets"][0] = 0
    if kind == "offsets beyond the file":
        for facts in header.values():
            facts["data_offsets"][1] += 2**40
    if kind == "shape that overflows":
        for facts in header.values():
            facts["shape"] = [2**40, 2**40]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + good[8 + length :]


@pytest.mark.parametrize(
    "kind", ["huge header", "overlapping offsets", "offsets beyond the file", "shape that overflows"]
)
def test_hostile_tensors_are_damage(adapter: Path, kind: str) -> None:
    expected = load_file(adapter / TENSORS)
    (adapter / TENSORS).write_bytes(hostile_tensors(kind, (adapter / TENSORS).read_bytes()))
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)


def test_pickles_in_an_adapter_folder_are_never_opened(adapter: Path, tmp_path: Path) -> None:
    marker, expected = tmp_path / "executed", load_file(adapter / TENSORS)
    bomb = pickle.dumps(Bomb(marker))
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "excitor.pkl"):
        (adapter / name).write_bytes(bomb)
    assert load_tensors(adapter / TENSORS, expected).keys() == expected.keys()
    (adapter / TENSORS).write_bytes(bomb)
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)
    torch.save({"gate": torch.zeros(1)}, adapter / TENSORS)
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(adapter / TENSORS, expected)
    assert not marker.exists()


@pytest.mark.parametrize(
    "edit", ["[" * 100_000, '{"format_version": 99}', "[]", "{}", '{"format_version": "x"}', "\0"]
)
def test_hostile_adapter_configs(adapter: Path, edit: str) -> None:
    (adapter / CONFIG).write_text(edit)
    with pytest.raises(AdapterError):
        load_config(adapter)


def test_a_number_that_no_float_holds_is_refused(adapter: Path) -> None:
    values = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(replaced(values, "decoding", "temperature", by=10**400)))
    with pytest.raises(AdapterError, match="too large"):
        load_config(adapter)


def aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\ntrain:\n  trackers: *a{levels - 1}\n"


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:pathlib.Path.touch [executed]\n",
        "train: !!python/name:os.system\n",
        aliases(12),
        "train: " + "[" * 20_000,
        "train: {steps: " + "9" * 5000 + "}\n",
        "train:\n  output: caf\udce9\n",
        "data:\n  train: 'pipe:touch executed'\n",
        "train: {learning_rate: " + "9" * 400 + "}\n",
        "\0",
    ],
    ids=["tag", "name", "aliases", "nesting", "number", "latin-1", "pipe", "float", "nul"],
)
def test_hostile_configurations(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        status = main(["train", "--config", "run.yaml", "--train.output", "run", "--train.device", "cpu"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert (status, "Traceback" in error, len(error) < 3000) == (2, False, True)
    assert [item.name for item in tmp_path.iterdir()] == ["run.yaml"]


def test_an_adapter_is_whole_while_it_is_replaced(adapter: Path) -> None:
    """As `caption` sees it when a training writes its best adapter anew."""
    config, tensors = load_config(adapter), load_file(adapter / TENSORS)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            save_adapter(adapter, config, tensors)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            assert load_config(adapter) == config
            assert load_tensors(adapter / TENSORS, tensors).keys() == tensors.keys()
    finally:
        ended.set()
        writer.join()
