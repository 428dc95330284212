"""A study treats all rows alike, keeps the best rate, goes on where it stopped, and shows what it found."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

from excitor_mm.batches import Windows
from excitor_mm.checkpoint import plain
from excitor_mm.config import RunConfig
from excitor_mm.errors import ConfigError
from excitor_mm.files import read_json
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from tests.conftest import COLOURS, make_shards, tiny_run

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import study  # noqa: E402 - lies beside the tools
from baselines import build_baseline  # noqa: E402
from studies import Outcome, carry_out  # noqa: E402
from studies.run import Run, complete, finished, in_a_process  # noqa: E402

TEXT = "\n\n".join(f"A picture of a {c} square in {c}, and below it there is another in white." for c in COLOURS)


@dataclasses.dataclass
class Asked:
    """A study as the command line asks for it, and what was carried out."""

    arguments: list[str]
    output: Path
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    runs: list[Run] = dataclasses.field(default_factory=list)

    def changed(self) -> dict[Path, int]:
        """When each result was written."""
        return {path: path.stat().st_mtime_ns for path in self.output.rglob("result.json")}


@pytest.fixture(scope="module")
def unasked(language_folder: Path, encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Two methods, two rates, two seeds, two steps."""
    folder = tmp_path_factory.mktemp("study")
    shards = make_shards(folder / "shards", [5, 3])
    config = tiny_run(language_folder, encoder_file, shards, folder / "unused")
    (folder / "run.yaml").write_text(yaml.safe_dump(plain(config)))
    (folder / "text.txt").write_text(TEXT)
    given = {"config": folder / "run.yaml", "train": shards, "validation": shards, "test": shards}
    given |= {"output": folder / "out", "text": folder / "text.txt", "steps": "2", "seeds": "2"}
    arguments = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    arguments += ["--methods", "excitor", "clipcap", "--rates", "0.01", "0.002"]
    return Asked([*arguments, "--train.batch_size=4", "--train.save_every", "1"], folder / "out")


@pytest.fixture(scope="module")
def asked(unasked: Asked) -> Asked:
    """All of its runs carried out, in this process."""

    def start(run: Run) -> None:
        unasked.runs.append(run)
        complete(run)

    options, changes = study.make_options().parse_known_args(unasked.arguments)
    for row in study.plan(options, changes):
        found = carry_out(row, unasked.output, options.seeds, test=options.test, text=options.text, start=start)
        unasked.outcomes.append(found)
    return unasked


def test_a_row_keeps_the_rate_with_the_best_validation_score(asked: Asked) -> None:
    for outcome in asked.outcomes:
        first = asked.output.glob(f"{outcome.row.name}/*/0/result.json")
        tried = {path.parents[1].name: read_json(path)["validation"] for path in first}
        assert tried.keys() == {"0.01", "0.002"}
        assert tried[f"{outcome.rate:g}"] == max(tried.values())
        assert [(result["rate"], result["seed"]) for result in outcome.results] == [
            (outcome.rate, 0),
            (outcome.rate, 1),
        ]
    assert len(asked.runs) == len(asked.changed()) == 6


def test_rows_differ_in_the_method_alone(asked: Asked) -> None:
    ours, other = (outcome.results[0] for outcome in asked.outcomes)
    assert 0.9 * ours["trainables"] <= other["trainables"] <= 1.1 * ours["trainables"]
    assert [ours[same] for same in ("prompt", "palette")] == [other[same] for same in ("prompt", "palette")]
    assert ours["perplexity"]["base"] == other["perplexity"]["base"] == other["perplexity"]["tuned"]
    assert ours["perplexity"]["tuned"] != ours["perplexity"]["base"]
    assert all(result["frozen_tensors_changed"] == 0 for outcome in asked.outcomes for result in outcome.results)
    assert {run.config.train.gate_learning_rate for run in asked.runs} == {0.01}


def test_a_second_invocation_repeats_no_run_and_shows_all(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    before = asked.changed()
    assert study.main(asked.arguments) == 0
    assert asked.changed() == before
    page = capsys.readouterr().out
    assert page == (asked.output / "study.md").read_text()
    rows = read_json(asked.output / "study.json")["rows"]
    for outcome, row in zip(asked.outcomes, rows, strict=True):
        assert [*row["seeds"], *row["other_rates"]] == [*outcome.results, *outcome.others]
        scores = [result["scores"]["CIDEr"] for result in outcome.results]
        assert f"| {sum(scores) / 2:.1f} ({min(scores):.1f} to {max(scores):.1f}) |" in page
        assert f"**{outcome.rate:g}: {outcome.grid[outcome.rate]:.1f}**" in page
    assert page.count("at the edge of the grid") == 2  # as either of two rates is


def test_other_settings_in_the_same_folder_are_refused(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([*asked.arguments, "--train.clip=2"]) == 2
    said = capsys.readouterr().err
    assert "differs from" in said
    assert "train.clip" in said


def test_a_run_that_was_killed_goes_on_in_a_process_of_its_own(asked: Asked, tmp_path: Path) -> None:
    """As it was after its first step; the mark shows that the training was not started anew."""
    whole = asked.runs[-1]
    killed = dataclasses.replace(whole, folder=tmp_path / "killed")
    train = dataclasses.replace(whole.config.train, output=str(killed.folder / "training"))
    killed = dataclasses.replace(killed, config=dataclasses.replace(whole.config, train=train))
    shutil.copytree(whole.folder, killed.folder)
    for name in ("result.json", "training.json", "predictions.jsonl", "predictions.meta.json"):
        (killed.folder / name).unlink()
    shutil.rmtree(killed.folder / "forgetting")
    shutil.rmtree(killed.folder / "training" / "checkpoints" / "step-00000002")
    (killed.folder / "training" / "mark").touch()
    assert finished(killed) is None
    in_a_process(killed)
    before, after = finished(whole), finished(killed)
    assert before is not None
    assert after is not None
    same = ("validation", "scores", "shuffled", "perplexity", "trainables")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert after["peak_mib"] > 100
    assert (killed.folder / "training" / "mark").exists()


def test_the_same_batches_reach_all_methods(run_config: RunConfig) -> None:
    def batches(model: ExcitorModel) -> list[dict]:
        windows = Windows(run_config, model, Accelerator(cpu=True), start=0)
        return [windows.next().batches[0].inputs for _ in range(3)]

    ours = batches(build_for_training(run_config))
    for name in ("llama-adapter", "llava-lora"):
        theirs = batches(build_for_training(run_config, functools.partial(build_baseline, name)))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one["input_ids"], other["input_ids"])
            assert torch.equal(one["labels"], other["labels"])
            assert torch.equal(one["pixel_values"][0], other["pixel_values"][0])


def plan(asked: Asked, *more: str) -> list[study.Row]:
    options, changes = study.make_options().parse_known_args([*asked.arguments, *more])
    return study.plan(options, changes)


def test_variants_and_plain_prompts_are_rows(unasked: Asked) -> None:
    few = ["--variant", "few", "prompt.palette_size=3", "excitor.rank=8"]
    slow = ["--variant", "slow", "train.learning_rate=0.001"]
    rows = {row.name: row for row in plan(unasked, "--methods", "excitor", "excitor-plain", *few, *slow)}
    assert list(rows) == ["excitor", "excitor-plain", "few", "slow"]
    assert rows["excitor-plain"].config.prompt.template == "caption"
    changed = rows["few"].config
    assert (changed.prompt.palette_size, changed.excitor.rank, changed.train.batch_size) == (3, 8, 4)
    assert [rows["few"].rates, rows["slow"].rates] == [[0.01, 0.002], [0.001]]


def test_what_cannot_be_a_row_is_refused_before_the_first_run(
    unasked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="choose of excitor, llama-adapter"):
        plan(unasked, "--methods", "flamingo")
    with pytest.raises(ConfigError, match="a name of its own"):
        plan(unasked, "--methods", "excitor", "--variant", "excitor", "excitor.rank=8")
    with pytest.raises(ConfigError, match="within 10 %"):
        plan(unasked, "--methods", "lora-prefix")
    with pytest.raises(SystemExit):
        plan(unasked, "--variant", "wide", "excitor.rnk=8")
    assert "Did you mean excitor.rank?" in capsys.readouterr().err
