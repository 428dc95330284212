"""LoRA starts at the identity, trains and is saved beside the Excitor, and can be switched off, merged and removed."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from excitor_mm.adapter import CONFIG, LORA
from excitor_mm.cli import main
from excitor_mm.config import LoraConfig, RunConfig
from excitor_mm.errors import AdapterError, ConfigError
from excitor_mm.lora import lora_dropout, lora_tensors, merge_lora, unload_lora
from excitor_mm.model import ExcitorModel
from excitor_mm.switches import switched_off
from excitor_mm.train import build_for_training
from tests.conftest import jpeg
from tests.invariants.test_training import steps

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def with_lora(run_config: RunConfig) -> RunConfig:
    return dataclasses.replace(
        run_config, lora=LoraConfig(rank=3, alpha=6, targets=["q_proj", "k_proj", "down_proj"])
    )


def logits(model: ExcitorModel, colour: str = "red") -> torch.Tensor:
    inputs = model.processor(images=[jpeg(colour)])
    visual, _ = model.visual_prompts(inputs["pixel_values"])
    with torch.no_grad():
        return model.language(inputs["input_ids"], visual_prompts=visual).logits


def base_logits(model: ExcitorModel) -> torch.Tensor:
    base = LlamaForCausalLM.from_pretrained(model.config.language.path).eval()
    with torch.no_grad():
        return base(model.processor(images=[jpeg()])["input_ids"]).logits


def test_fresh_lora_is_the_identity(with_lora: RunConfig) -> None:
    closed = dataclasses.replace(with_lora.excitor, gate_start=0.0)
    targets = dataclasses.replace(with_lora.lora, targets=ALL)
    model = build_for_training(dataclasses.replace(with_lora, excitor=closed, lora=targets))
    assert torch.equal(logits(model), base_logits(model))


def test_exactly_lora_and_the_excitor_train_in_float32(with_lora: RunConfig) -> None:
    half = dataclasses.replace(with_lora, language=dataclasses.replace(with_lora.language, dtype="bfloat16"))
    torch.manual_seed(0)
    before = {name: p.clone() for name, p in build_for_training(half).named_parameters()}
    model, _ = steps(half, size=8)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in model.trainables().values()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in model.trainables().values())
    names = lora_tensors(model.language).keys()
    assert names == get_peft_model_state_dict(model.language).keys()
    assert len(names) == 3 * 3 * 2  # layers, targets, A and B
    assert "model.layers.2.self_attn.k_proj.base.lora_A.weight" in names  # below the Excitor, not around it
    assert "model.layers.0.self_attn.k_proj.lora_A.weight" in names  # a layer without an Excitor


def test_saved_and_loaded_is_bit_equal(with_lora: RunConfig, tmp_path: Path, capsys) -> None:
    model, _ = steps(with_lora, size=8)
    model.save_pretrained(tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / LORA).keys() == lora_tensors(model.language).keys()
    loaded = ExcitorModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert main(["inspect", str(tmp_path / "adapter")]) == 0
    assert "rank 3" in capsys.readouterr().out


def test_lora_files_are_read_strictly(with_lora: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    build_for_training(with_lora).save_pretrained(folder)

    def refused(sentence: str) -> None:
        with pytest.raises(AdapterError, match=sentence):
            ExcitorModel.from_pretrained(folder, device="cpu")

    tensors, config = load_file(folder / LORA), json.loads((folder / CONFIG).read_text())
    save_file(dict(list(tensors.items())[1:]), folder / LORA)
    refused("1 tensors missing")
    (folder / LORA).unlink()
    refused(f"holds no {LORA}")
    save_file(tensors, folder / LORA)
    del config["lora"]  # as adapters were written before there was LoRA
    (folder / CONFIG).write_text(json.dumps(config))
    refused("names no LoRA")
    (folder / LORA).unlink()
    assert not lora_tensors(ExcitorModel.from_pretrained(folder, device="cpu").language)


def test_switched_off_is_the_base_model_bit_for_bit(with_lora: RunConfig) -> None:
    model, _ = steps(with_lora, size=8)
    tuned, base = logits(model), base_logits(model)
    assert not torch.equal(tuned, base)
    with model.base_model():
        assert torch.equal(logits(model), base)
    with switched_off("excitor"):
        assert not torch.equal(logits(model), base)  # LoRA alone
    assert torch.equal(logits(model), tuned)


def test_merged_equals_unmerged_and_removed_equals_switched_off(with_lora: RunConfig, tmp_path: Path) -> None:
    model, _ = steps(with_lora, size=8)
    merged, removed = copy.deepcopy(model), copy.deepcopy(model)
    merge_lora(merged.language)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits(merged), base_logits(model))
    unload_lora(removed.language)
    with switched_off("lora"):
        assert torch.equal(logits(removed), logits(model))
    for changed in (merged, removed):
        assert not any("lora" in name for name, _ in changed.named_parameters())
    with pytest.raises(ConfigError, match="merged"):
        merged.base_model()
    with pytest.raises(AdapterError, match="merged"):
        merged.save_pretrained(tmp_path / "adapter")


def test_lora_alone_trains_and_sees_no_picture(with_lora: RunConfig, tmp_path: Path) -> None:
    none = dataclasses.replace(with_lora, excitor=dataclasses.replace(with_lora.excitor, layers=0))
    model, _ = steps(none, size=8)
    assert model.trainables().keys() == lora_tensors(model.language).keys()
    model.save_pretrained(tmp_path / "adapter")
    loaded = ExcitorModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(loaded, "red"), logits(loaded, "blue"))
    assert not torch.equal(logits(loaded), base_logits(model))


def test_ranks_by_name(with_lora: RunConfig) -> None:
    pattern = {"q_proj": 2, "layers.1.mlp.down_proj": 5}
    model = build_for_training(
        dataclasses.replace(with_lora, lora=dataclasses.replace(with_lora.lora, rank_pattern=pattern))
    )
    ranks = {name: len(p) for name, p in lora_tensors(model.language).items() if "lora_A" in name}
    for name, rank in ranks.items():
        assert rank == (2 if "q_proj" in name else 5 if "layers.1.mlp" in name else 3)


def test_dropout_drops_in_training_only(with_lora: RunConfig) -> None:
    dropping = dataclasses.replace(with_lora, lora=dataclasses.replace(with_lora.lora, dropout=0.5))
    model, _ = steps(dropping, size=8)
    assert torch.equal(logits(model), logits(model))
    with lora_dropout(model):
        assert not torch.equal(logits(model), logits(model))
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"targets": ["q_proj", "wq"]}, "wq.*q_proj"),
        ({"targets": []}, "choose from these"),
        ({"rank": -1}, "rank is -1"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(with_lora: RunConfig, changes: dict, sentence: str) -> None:
    bad = dataclasses.replace(with_lora, lora=dataclasses.replace(with_lora.lora, **changes))
    with pytest.raises(ConfigError, match=sentence):
        build_for_training(bad)


def test_neither_excitor_nor_lora_is_a_sentence(run_config: RunConfig) -> None:
    nothing = dataclasses.replace(run_config, excitor=dataclasses.replace(run_config.excitor, layers=0))
    with pytest.raises(ConfigError, match="nothing would train"):
        build_for_training(nothing)


@pytest.mark.parametrize("rank", [0, 3])
def test_training_goes_on_from_an_adapter(with_lora: RunConfig, rank: int, tmp_path: Path) -> None:
    config = dataclasses.replace(with_lora, lora=dataclasses.replace(with_lora.lora, rank=rank))
    model, _ = steps(config, size=8)
    model.save_pretrained(tmp_path / "adapter")
    start = dataclasses.replace(config, train=dataclasses.replace(config.train, start=str(tmp_path / "adapter")))
    found = build_for_training(start).trainables()
    assert found.keys() == model.trainables().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.trainables().items())
    other = dataclasses.replace(start, lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="another lora"):
        build_for_training(other)
