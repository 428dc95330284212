"""Adapter folders are strict in both directions and never half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from excitor_mm.adapter import CARD, CONFIG, TENSORS, fingerprint, load_config, save_adapter
from excitor_mm.config import RunConfig
from excitor_mm.errors import AdapterError
from excitor_mm.model import ExcitorModel
from excitor_mm.train import build_for_training


@pytest.fixture
def folder(run_config: RunConfig, tmp_path: Path) -> Path:
    build_for_training(run_config).save_pretrained(tmp_path / "adapter", {"steps": "0"})
    return tmp_path / "adapter"


def edit_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **changes}))


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(AdapterError, match=sentence):
        ExcitorModel.from_pretrained(folder, device="cpu")


def test_only_trainables_are_saved(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, CARD, "config.json"}
    names = {name.split(".", 2)[2] for name in load_file(folder / TENSORS)}
    down = {"visual_key_down", "visual_value_down", "visual_key_up", "visual_value_up"}
    assert names == {"gate", "prompts", "query_down", "query_up"} | down


def test_missing_unexpected_and_misshapen_tensors(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    gate = tensors.pop("layers.1.gate")
    save_file(tensors, folder / TENSORS)
    refused(folder, "1 tensors missing")
    save_file({**tensors, "layers.1.gate": gate, "layers.9.gate": gate.clone()}, folder / TENSORS)
    refused(folder, "1 unexpected")
    save_file({**tensors, "layers.1.gate": torch.zeros(5)}, folder / TENSORS)
    refused(folder, "has shape")
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:50])
    refused(folder, "damaged")
    (folder / TENSORS).unlink()
    refused(folder, "holds no")


def test_another_base_encoder_or_format(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    edit_config(folder, language_fingerprint="0" * 16)
    refused(folder, "language model .* fingerprint")
    edit_config(folder, language_fingerprint=config["language_fingerprint"], vision_fingerprint="0" * 16)
    refused(folder, "encoder .* fingerprint")
    edit_config(folder, format_version=3)
    refused(folder, "format version 3")
    edit_config(folder, format_version=1, surprise=1)
    refused(folder, "surprise")
    (folder / CONFIG).write_text("{")
    refused(folder, "not valid JSON")


def test_fingerprint_ignores_precision_but_not_weights() -> None:
    torch.manual_seed(0)
    for stored in (torch.float16, torch.bfloat16, torch.float32):
        weights = (torch.randn(50, 40) * 0.1).to(stored)
        loaded = {dtype: fingerprint([("w", weights.to(dtype))]) for dtype in (torch.float32, stored)}
        assert len(set(loaded.values())) == 1
    half = (torch.randn(50, 40) * 0.02).half()
    assert fingerprint([("w", half)]) == fingerprint([("w", half.bfloat16())])
    assert fingerprint([("w", half)]) != fingerprint([("w", half + 0.01)])
    assert fingerprint([("w", half)]) != fingerprint([("v", half)])


def test_replacing_keeps_no_traces(folder: Path) -> None:
    save_adapter(folder, load_config(folder), load_file(folder / TENSORS))
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    ExcitorModel.from_pretrained(folder, device="cpu")
