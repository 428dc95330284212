"""The drawn data: deterministic, what is committed, and really unseen combinations in the test scenes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from excitor_mm.data.check import check_shards
from excitor_mm.data.index import read_index
from excitor_mm.data.shards import list_shards, read_shard

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import sample_scenes  # noqa: E402 - lies beside the tools


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    tool = str(ROOT / "tools" / "make_sample_data.py")
    subprocess.run([sys.executable, tool, "--output", str(folder / "s"), "--keep", str(folder / "k")], check=True)
    return folder


def test_committed_shards_are_what_the_tool_draws(drawn: Path) -> None:
    for split in ("train", "val", "test"):
        committed, again = read_index(ROOT / "data" / "sample" / split), read_index(drawn / "s" / split)
        assert committed.shards == again.shards
        assert check_shards(str(ROOT / "data" / "sample" / split)).ok


def test_main_objects_of_the_test_scenes_are_new_combinations(drawn: Path) -> None:
    pairs = {}
    for split in ("train", "val", "test"):
        images = json.loads((drawn / "k" / split / "captions.json").read_text())["images"]
        scenes = [[(thing["colour"], thing["kind"]) for thing in image["scene"]["things"]] for image in images]
        pairs[split] = scenes
    seen = {pair for scene in pairs["train"] for pair in scene}
    assert {colour for colour, _ in seen} == set(sample_scenes.COLOURS)
    assert {kind for _, kind in seen} == set(sample_scenes.KINDS)
    for split in ("val", "test"):
        assert all(any(pair not in seen for pair in scene) for scene in pairs[split])


def test_captions_and_questions_tell_the_scene() -> None:
    chooser = random.Random(1)
    for _ in range(100):
        scene = sample_scenes.make_scene(chooser, training=True)
        captions = sample_scenes.captions(scene)
        assert len(set(captions)) == 5
        for thing in scene.things:
            assert all(thing.colour in text.lower() and thing.kind in text.lower() for text in captions)
        answers = {text: answer for text, answer, _, _ in sample_scenes.questions(scene, chooser)}
        assert any(answer in sample_scenes.COLOURS for answer in answers.values())


def test_small_enough_to_commit_with_ten_answers_each() -> None:
    folders = [ROOT / "data" / "sample" / split for split in ("train", "val", "test")]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 3e6
    bad: list = []
    samples = [s for folder in folders for shard in list_shards(str(folder)) for s in read_shard(shard, bad.append)]
    assert all(len(s.captions) == 5 and len(s.questions) == 3 for s in samples)
    assert all(len(question.answers) == 10 for s in samples for question in s.questions)


def test_text_rows_ask_about_their_own_caption(drawn: Path) -> None:
    rows = json.loads((drawn / "k" / "train" / "text.json").read_text())
    assert len(rows) == 360 * 5 * 3
    for row in rows:
        question, caption, _ = row["instruction"].split("\n")
        words = caption.lower().removesuffix(".").split()
        if question.startswith("Is there a"):
            kind = question.removeprefix("Is there a ").removesuffix("?")
            assert row["output"] == ("yes" if {kind, sample_scenes.plural(kind)} & set(words) else "no")
        elif question.startswith("What color"):
            assert row["output"] in words
        else:
            assert sample_scenes.NUMBERS.get(int(row["output"]), "a") in words


def test_a_folder_that_is_full_is_refused_with_a_sentence(drawn: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "make_sample_data.py"),
        "--output",
        str(drawn / "s"),
        "--train",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "already packed: choose another --output" in line
