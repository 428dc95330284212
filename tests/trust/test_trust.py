"""Short forms of the trust tools: killed runs, several processes, divided weights."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from excitor_mm.config import LanguageConfig, PromptConfig, RunConfig
from excitor_mm.prepare import build_for_training
from tests.conftest import make_shards, teach_captions, write_language
from tests.trust.ranks import ROOT, change, difference, run_ranks


def run_tool(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.trust.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_killed_runs_end_with_the_adapter_of_an_uninterrupted_one() -> None:
    assert "bit-equal: True" in run_tool("kill", "--kills", "3")


def test_two_ranks_equal_one_with_two_passes(run_config: RunConfig, poisoned: RunConfig, tmp_path: Path) -> None:
    """Bit for bit, because each sum has two terms: plain, with FSDP2, with steps left out, and resumed by one rank.

    In self-critical training, too, whose captions are drawn by whichever rank has their image.
    """

    def run(name: str, config: RunConfig = run_config, **settings: object) -> RunConfig:
        return change(config, tmp_path / name, **settings)

    make_shards(tmp_path / "halved", [4, 4])
    (tmp_path / "halved" / "tiny-000001.tar").unlink()  # lane 1, so rank 1, has nothing to read
    data = dataclasses.replace(run_config.data, train=str(tmp_path / "halved"), lanes=2)
    broken = dataclasses.replace(poisoned, data=data)
    skipping = {"nonfinite": "skip", "batch_size": 4}
    language = LanguageConfig(str(teach_captions(write_language(tmp_path / "language"))), dtype="float32")
    speaking = dataclasses.replace(run_config, language=language, prompt=PromptConfig(template="Caption:"))
    build_for_training(speaking).save_pretrained(tmp_path / "start")
    drawing = {"start": str(tmp_path / "start"), "stage": "scst", "scst_samples": 3}
    run_ranks(
        2,
        [
            run("two"),
            run("divided", shard_frozen=True),
            run("resumed", save_every=2),
            run("skipped-two", poisoned, **skipping),
            run("broken", broken),
            run("stopped", poisoned),
            run("drawn-two", speaking, **drawing),
            run("drawn-divided", speaking, **drawing, shard_frozen=True),
        ],
        tmp_path,
    )
    (tmp_path / "resumed" / "checkpoints" / "step-00000004" / "state.pt").write_bytes(b"")  # as if killed in step 3
    passes = {"accumulation": 2}
    run_ranks(
        1,
        [
            run("one", **passes),
            run("resumed", **passes, save_every=2),
            run("skipped", poisoned, **skipping, **passes),
            run("drawn", speaking, **drawing, **passes),
        ],
        tmp_path,
    )
    assert difference(tmp_path / "one", tmp_path / "two") == 0.0
    assert difference(tmp_path / "one", tmp_path / "divided") == 0.0
    assert difference(tmp_path / "one", tmp_path / "resumed") == 0.0
    assert difference(tmp_path / "skipped", tmp_path / "skipped-two") == 0.0
    assert difference(tmp_path / "drawn", tmp_path / "drawn-two") == 0.0
    assert difference(tmp_path / "drawn", tmp_path / "drawn-divided") == 0.0
    assert (
        len({frozenset(p.name for p in (tmp_path / run / "best").iterdir()) for run in ("one", "two", "divided")})
        == 1
    )
    for name, sentence in (("broken", "tiny-000001.tar cannot be opened"), ("stopped", "000000000006")):
        assert all(sentence in (tmp_path / name / f"error-{rank}.txt").read_text() for rank in (0, 1))
