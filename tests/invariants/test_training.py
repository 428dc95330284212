"""Training changes what it should and nothing else, and says the same however it is cut into pieces."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from excitor_mm.adapter import TENSORS, load_config
from excitor_mm.checkpoint import read_checkpoint
from excitor_mm.config import RunConfig
from excitor_mm.data.index import write_shard
from excitor_mm.data.pipeline import IGNORE, Batch, ExampleMaker, collate
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import EvaluationStream, read_stream
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.step import make_scaler, train_step
from excitor_mm.train import frozen_checksums, make_optimizer, set_learning_rate, train
from tests.conftest import jpeg, make_sample, make_shards


def change(config: RunConfig, **settings: object) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


def batches(config: RunConfig, model: ExcitorModel, size: int) -> list[Batch]:
    """The eight samples in order, `size` at a time, without augmentation."""
    tokenizer = model.processor.tokenizer
    maker = ExampleMaker(tokenizer, model.task_format("caption"), model.tower.transform(), 0, 10**8, draw=False)
    padder = functools.partial(collate, padding=tokenizer.pad_token_id)
    stream = EvaluationStream(list_shards(config.data.train), maker, padder, batch_size=size)
    return [item.batch for item in read_stream(stream, workers=0)]


def steps(config: RunConfig, size: int, count: int = 3) -> tuple[ExcitorModel, tuple[float, float, int]]:
    """Train on the eight samples as windows of batches of `size`; the model and the last step's figures."""
    torch.manual_seed(0)
    model, accelerator = build_for_training(config), Accelerator(cpu=True)
    optimizer = make_optimizer(model, config)
    for step in range(count):
        set_learning_rate(optimizer, step, config)
        window = batches(config, model, size)
        tokens = sum(int((batch.inputs["labels"][:, 1:] != IGNORE).sum()) for batch in window)
        facts = train_step(model, optimizer, window, tokens, accelerator, config, make_scaler(config, model.device))
    return model, (facts.loss, facts.norm, tokens)


def test_every_trainable_moves_and_nothing_else(run_config: RunConfig) -> None:
    torch.manual_seed(0)
    before = {name: p.clone() for name, p in build_for_training(run_config).named_parameters()}
    model, _ = steps(run_config, size=8)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    buffers = dict(build_for_training(run_config).named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_checksums_see_every_change_of_a_frozen_tensor(run_config: RunConfig) -> None:
    """CNNs lie in channels-last order, where a 1 x 1 filter has no inner dimension of stride one."""
    cnn = dataclasses.replace(run_config.vision[0], model="test_efficientnet", weights=None)
    model = build_for_training(dataclasses.replace(run_config, vision=[cnn]))
    before = frozen_checksums(model)
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.dim() == 4 and p.shape[-1] == 1)
    parameter.view(-1)[0] += 1
    assert {key for key, value in frozen_checksums(model).items() if value != before[key]} == {name}


def test_closed_gate_still_learns(run_config: RunConfig) -> None:
    closed = dataclasses.replace(run_config, excitor=dataclasses.replace(run_config.excitor, gate_start=0.0))
    assert all(p.any() for name, p in steps(closed, size=8)[0].trainables().items() if name.endswith("gate"))


def test_accumulation_changes_nothing(run_config: RunConfig) -> None:
    (one, figures), (two, again) = steps(run_config, size=8, count=1), steps(run_config, size=2, count=1)
    assert again == pytest.approx(figures, rel=1e-5)  # Adam hides the scale of a gradient; its norm does not
    for name, parameter in one.trainables().items():
        torch.testing.assert_close(two.trainables()[name], parameter, rtol=1e-4, atol=1e-5)


def test_interrupted_and_resumed_equals_uninterrupted(run_config: RunConfig, tmp_path: Path) -> None:
    whole = change(run_config, output=str(tmp_path / "whole"), steps=5, save_every=2, log_every=1, batch_size=3)
    train(whole)
    cut = change(whole, output=str(tmp_path / "cut"))
    code = (
        "import sys, json, excitor_mm.train as t; from excitor_mm.config import *\n"
        "save = t.RunState.save\n"
        "def save_and_die(state, keep):\n"
        "    save(state, keep)\n"
        "    import os; os._exit(9)\n"
        "t.RunState.save = save_and_die\n"
        "t.train(from_dict(RunConfig, json.loads(sys.stdin.read())))\n"
    )
    died = subprocess.run([sys.executable, "-c", code], input=json.dumps(dataclasses.asdict(cut)), text=True)
    assert died.returncode == 9
    assert not (tmp_path / "cut" / "best").exists()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 9.9}\n{"step": 4, "lo')  # written after the checkpoint, the last line torn
    train(cut, resume=True)
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    assert [json.loads(line)["step"] for line in logs[1]] == [json.loads(line)["step"] for line in logs[0]]
    expected, found = (load_file(tmp_path / run / "last" / TENSORS) for run in ("whole", "cut"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_resume_in_the_middle_needs_the_same_configuration(run_config: RunConfig) -> None:
    train(change(run_config, steps=2))
    with pytest.raises(ConfigError, match="--resume or --overwrite"):
        train(change(run_config, steps=2))
    with pytest.raises(ConfigError, match="configuration differs"):
        train(change(run_config, steps=3), resume=True)


def test_patience_ends_a_run_and_saves_it(run_config: RunConfig) -> None:
    """With a rate of zero nothing ever gets better than the first validation."""
    data = dataclasses.replace(run_config.data, validation=run_config.data.train)
    config = change(
        dataclasses.replace(run_config, data=data), steps=9, learning_rate=0.0, validate_every=1, patience=1
    )
    output = train(config).parent
    assert read_checkpoint(output)["step"] == 2
    assert load_config(output / "last").training["steps"] == "2"


def test_validation_that_gives_no_score_is_a_sentence_and_says_what_was_bad(
    run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image has no CIDEr; the other cannot be decoded."""
    good, bad = make_sample(1), dataclasses.replace(make_sample(2), image=b"no picture")
    write_shard(tmp_path / "v.tar", [good, bad])
    data = dataclasses.replace(run_config.data, validation=str(tmp_path / "v.tar"))
    with pytest.raises(DataError, match=r"validation.*at least 2 images"):
        train(dataclasses.replace(run_config, data=data))
    assert f"bad sample {bad.key} in v.tar: not an image" in capsys.readouterr().err


def test_saved_and_loaded_is_bit_equal(run_config: RunConfig, tmp_path: Path) -> None:
    model, _ = steps(run_config, size=8)
    model.save_pretrained(tmp_path / "adapter")
    loaded = ExcitorModel.from_pretrained(tmp_path / "adapter", device="cpu")
    batch = batches(run_config, model, 8)[0]
    with torch.no_grad():
        assert torch.equal(loaded(**batch.inputs)[0], model(**batch.inputs)[0])
    assert loaded.processor.prompt == model.processor.prompt


def test_eight_images_are_learnt_by_heart(run_config: RunConfig, tmp_path: Path) -> None:
    """The whole way: train, validate with CIDEr on the same images, keep the best adapter, caption."""
    shards = str(make_shards(tmp_path / "one-caption", [8], captions=1))
    data = dataclasses.replace(run_config.data, train=shards, validation=shards, crop_scale=(1.0, 1.0))
    sizes = dataclasses.replace(run_config.excitor, layers=3, prompts=16, rank=16, visual_rank=16, gate_start=2.0)
    prompt = dataclasses.replace(run_config.prompt, palette_size=16)
    config = dataclasses.replace(run_config, data=data, excitor=sizes, prompt=prompt)
    config = change(config, steps=500, learning_rate=1e-2, weight_decay=0.0, validate_every=500, save_every=500)
    best = train(config)
    rows = [json.loads(line) for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
    cider = next(row["cider"] for row in rows if "cider" in row)
    assert cider > 700  # 750 is perfect: captions of three words have no four-word phrases
    model = ExcitorModel.from_pretrained(best, device="cpu")
    assert model.caption([jpeg("red"), jpeg("blue")]) == ["A red square.", "A blue square."]
