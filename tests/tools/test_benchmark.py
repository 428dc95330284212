"""The benchmark measures what it says, and its suites run on parts of any size."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from excitor_mm.config import RunConfig
from excitor_mm.prepare import build_for_training

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from suites import SUITES  # noqa: E402 - lies beside the tools
from suites.growth import GRID, _topmost, draw  # noqa: E402
from suites.measure import Comparison, alternate, as_markdown, run  # noqa: E402
from suites.memory import peak, restart_peak  # noqa: E402


def test_sides_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds * len(calls)

    sides = {"slow": lambda: side("slow", 2.0), "fast": lambda: side("fast", 1.0)}
    found = alternate(Comparison("x", sides, work=2), rounds=2)
    assert calls == ["slow", "fast"] * 3
    assert found.costs == {"slow": [3.0, 5.0], "fast": [2.0, 3.0]}
    page = as_markdown(Comparison("x", sides, work=2), found._replace(gpu_peaks={"slow": 0, "fast": 0}))
    assert "| slow | 4,000.0 | 3,000.0 to 5,000.0 | 1.58 |" in page  # the median of 3/2 and 5/3
    assert "| fast | 2,500.0 | 2,000.0 to 3,000.0 | 1.00 |" in page
    page = as_markdown(Comparison("x", sides, work=2), found._replace(gpu_peaks={"slow": 3 << 20, "fast": 1 << 20}))
    assert "GPU MiB" in page
    assert "| fast | 2,500.0 | 2,000.0 to 3,000.0 | 1.00 | 1 |" in page


def test_a_side_that_costs_nothing_divides_nothing_and_the_rest_is_kept(tmp_path: Path) -> None:
    def fail() -> float:
        raise RuntimeError("no memory")

    first = Comparison("first", {"ours": lambda: 3.0, "theirs": lambda: 0.0}, measure="MiB", warm_up=False)
    with pytest.raises(RuntimeError, match="no memory"):
        run("two", [first, Comparison("second", {"ours": fail}, warm_up=False)], 1, tmp_path)
    (row,) = json.loads((tmp_path / "two.json").read_text())["comparisons"]
    assert row["costs"] == {"ours": [3.0], "theirs": [0.0]}


def _peaks() -> tuple[float, float, float]:
    passing = torch.ones(256 << 20, dtype=torch.uint8)  # so large that malloc maps it, and gives it back at once
    high = peak()
    del passing
    held = restart_peak()
    kept = torch.ones(64 << 20, dtype=torch.uint8)
    return high, held, peak() - held if len(kept) else 0.0


def test_the_peak_counts_from_where_it_was_restarted() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # without what other tests left behind
        high, held, grown = pool.apply(_peaks)
    assert held < high
    assert 0.9 * (64 << 20) < grown < 128 << 20


@pytest.fixture
def options(run_config: RunConfig, tmp_path: Path) -> Namespace:
    build_for_training(run_config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(run_config)))))
    return Namespace(
        adapter=tmp_path / "adapter",
        config=tmp_path / "run.yaml",
        images=run_config.data.train,
        count=4,
        batch_size=2,
        image_tokens=9,
        new_tokens=3,
        dtype="auto",
        sides=None,
    )


@pytest.mark.parametrize("suite", ["train-step", "answers", "prefill", "decode", "generate", "caption", "reader"])
def test_suites_run_and_write_every_figure(suite: str, options: Namespace, tmp_path: Path) -> None:
    comparisons = SUITES[suite](options)
    page = run(suite, comparisons, 2, tmp_path / "out")
    written = json.loads((tmp_path / "out" / f"{suite}.json").read_text())
    assert {"date", "commit", "cpu", "threads", "torch"} <= written["machine"].keys()
    for comparison, row in zip(comparisons, written["comparisons"], strict=True):
        assert row["costs"].keys() == comparison.sides.keys()
        assert all(len(costs) == 2 and min(costs) > 0 for costs in row["costs"].values())
        assert all(f"| {name} |" in page for name in comparison.sides)


def test_fewer_excited_layers_are_only_borrowed(run_config: RunConfig) -> None:
    model = build_for_training(run_config).eval()
    inputs = model.processor(images=[None], text="A red square in red.")
    with torch.no_grad():
        whole = model.language(inputs["input_ids"]).logits
        with _topmost(model, 1):
            assert list(model.language.excitors()) == [2]
            assert not torch.equal(model.language(inputs["input_ids"]).logits, whole)
        assert torch.equal(model.language(inputs["input_ids"]).logits, whole)
    assert "excitor layers" in GRID


def test_curves_are_drawn_from_the_written_figures(tmp_path: Path) -> None:
    rows = [
        {"title": f"{kind}, {what}", "facts": {what: value}, "costs": {"excitor": [value / 1e3], "bare": [0.1]}}
        for kind in ("time", "memory")
        for what, values in GRID.items()
        for value in values
    ]
    (tmp_path / "growth.json").write_text(json.dumps({"comparisons": rows}))
    draw(tmp_path / "growth.json", tmp_path / "growth.png")
    assert Image.open(tmp_path / "growth.png").width > 1000
