"""Predictions over shards: each image once, for any number of processes, killed and resumed or not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from excitor_mm.config import Prompts, RunConfig
from excitor_mm.errors import DataError
from excitor_mm.files import hold
from excitor_mm.model import ExcitorModel
from excitor_mm.predict import predict
from excitor_mm.queries import read_queries
from excitor_mm.train import train
from tests.conftest import jpeg, make_shards


@pytest.fixture
def adapter(run_config: RunConfig) -> Path:
    return train(run_config)


def rows(path: Path) -> dict[int, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["image_id"] for line in lines}) == len(lines)
    return {line["image_id"]: line["caption"] for line in lines}


def test_three_processes_equal_one(adapter: Path, run_config: RunConfig, tmp_path: Path) -> None:
    """Also from the point where a killed run of two processes stopped."""
    one, three = tmp_path / "one" / "p.jsonl", tmp_path / "three" / "p.jsonl"
    model = ExcitorModel.from_pretrained(adapter)
    assert predict(model, run_config.data.train, one, adapter="best", batch_size=3, workers=0) == 8
    three.parent.mkdir()
    three.with_suffix(".meta.json").write_text(one.with_suffix(".meta.json").read_text())
    lines = one.read_text().splitlines(keepends=True)
    (three.parent / "p.rank0.jsonl").write_text(lines[0] + lines[1])
    (three.parent / "p.rank1.jsonl").write_text(lines[6] + lines[7][:20])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3", "--standalone", "-m", "excitor_mm"]
    command = [*launch, "predict", "--adapter", str(adapter), "--shards", run_config.data.train, "--workers", "0"]
    done = subprocess.run(
        [*command, "--output", str(three), "--batch-size", "3"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows(three) == rows(one)
    assert sorted(path.name for path in three.parent.iterdir()) == ["p.jsonl", "p.meta.json"]


def test_killed_between_joining_and_deleting(adapter: Path, run_config: RunConfig, tmp_path: Path) -> None:
    output, model = tmp_path / "p.jsonl", ExcitorModel.from_pretrained(adapter)
    predict(model, run_config.data.train, output, adapter="best", workers=0)
    whole = output.read_text()
    (tmp_path / "p.rank0.jsonl").write_text(whole)
    assert predict(model, run_config.data.train, output, adapter="best", workers=0) == 8
    assert output.read_text() == whole


def test_other_settings_and_doubled_images_are_refused(adapter: Path, run_config: RunConfig, tmp_path: Path) -> None:
    output, model = tmp_path / "p.jsonl", ExcitorModel.from_pretrained(adapter)
    predict(model, run_config.data.train, output, adapter="best", workers=0)
    with pytest.raises(DataError, match="other settings"):
        predict(model, run_config.data.train, output, adapter="other", workers=0)
    for parameter in model.trainables().values():
        parameter.data += 1  # another adapter of the same name
    with pytest.raises(DataError, match="other settings"):
        predict(model, run_config.data.train, output, adapter="best", workers=0)
    make_shards(tmp_path / "again", [2])
    both = f"{tmp_path}/again/tiny-000000.tar,{run_config.data.train}"
    with pytest.raises(DataError, match="2 images are twice"):
        predict(model, f"{{{both}}}", tmp_path / "q.jsonl", adapter="best", workers=0)


def test_two_runs_into_one_file_are_refused(adapter: Path, run_config: RunConfig, tmp_path: Path) -> None:
    model = ExcitorModel.from_pretrained(adapter)
    with hold(tmp_path, ".p.jsonl.lock"), pytest.raises(DataError, match="in use"):
        predict(model, run_config.data.train, tmp_path / "p.jsonl", adapter="best", workers=0)
    assert predict(model, run_config.data.train, tmp_path / "p.jsonl", adapter="best", workers=0) == 8


def test_an_image_is_captioned_once_however_its_questions_fall_into_batches(
    tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.jpg").write_bytes(jpeg("red"))
    rows = [{"question": f"Question {number}?", "image": "red.jpg"} for number in range(5)]
    (tmp_path / "q.json").write_text(json.dumps([*rows, {"question": "Why?"}]))
    model = ExcitorModel.from_pretrained(tiny_adapter, device="cpu")
    prompts = Prompts({"vqa": "{question}\nPicture: {caption}\nAnswer:", "caption": "A picture:"})
    model.config = dataclasses.replace(model.config, prompts=prompts)
    asked = read_queries(tmp_path / "q.json", None, model.task_format("vqa"))
    batches: list[int] = []
    generate = model.generate

    def counted(input_ids: torch.Tensor, *args, **options):
        batches.append(len(input_ids))
        return generate(input_ids, *args, **options)

    monkeypatch.setattr(model, "generate", counted)
    assert predict(model, asked, tmp_path / "p.jsonl", adapter="tiny", task="vqa", batch_size=2) == 6
    assert batches == [1, 2, 2, 2]
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    captions = {answer["question_id"]: answer.get("caption", "") for answer in answers}
    assert captions == {number: model.caption(tmp_path / "red.jpg") for number in range(5)} | {5: ""}
