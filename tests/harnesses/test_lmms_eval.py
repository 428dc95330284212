"""lmms-eval runs a task of two samples on our model, found through the entry point. Run by `make harnesses`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lmms_eval", reason="an optional extra: `make harnesses` installs it and runs this test")

from excitor_mm.config import RunConfig
from excitor_mm.model import ExcitorModel
from excitor_mm.train import train
from tests.conftest import jpeg

TASK = """
task: two_squares
dataset_path: parquet
dataset_kwargs:
  data_files: {folder}/*.parquet
test_split: train
output_type: generate_until
doc_to_visual: !function helpers.visual
doc_to_text: "Describe the image."
doc_to_target: caption
process_results: !function helpers.results
generation_kwargs:
  max_new_tokens: 6
  until: ["Q:"]
metric_list:
  - metric: words
    aggregation: mean
    higher_is_better: true
"""
HELPERS = """
import io
from PIL import Image

def visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]

def results(doc, results):
    return {"words": float(results[0] == doc["caption"])}
"""


def test_two_samples(run_config: RunConfig, tmp_path: Path) -> None:
    from datasets import Dataset
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    adapter = train(run_config)
    pictures = [jpeg("red"), jpeg("blue")]
    captions = ExcitorModel.from_pretrained(adapter).caption(pictures, max_new_tokens=6)
    rows = [{"image": {"bytes": picture}, "caption": text} for picture, text in zip(pictures, captions, strict=True)]
    Dataset.from_list(rows).to_parquet(tmp_path / "task" / "two.parquet")
    (tmp_path / "task" / "two_squares.yaml").write_text(TASK.format(folder=tmp_path / "task"))
    (tmp_path / "task" / "helpers.py").write_text(HELPERS)
    found = simple_evaluate(
        model="excitor_mm",
        model_args=f"adapter={adapter}",
        tasks=["two_squares"],
        batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path / "task"), include_defaults=False),
    )
    # The harness scores our captions against themselves: every answer arrived, at its own image.
    assert found["results"]["two_squares"]["words,none"] == 1.0
    assert len(found["samples"]["two_squares"]) == 2
