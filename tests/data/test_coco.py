"""Packing: what goes in comes out, byte for byte, and what cannot go in is named."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from excitor_mm.data.coco import Source, pack_coco
from excitor_mm.data.index import read_index
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.errors import DataError
from tests.conftest import interruptible, jpeg


@pytest.fixture
def coco(tmp_path: Path) -> Source:
    """Seven pictures in COCO format; ids 1..7."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(1, 8):
        (images / f"{i}.jpg").write_bytes(jpeg((i * 30, 0, 0)))
    rows = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, 8)]
    captions = [{"id": 10 * i + n, "image_id": i, "caption": f"c{i} {n}\n"} for i in range(1, 8) for n in range(2)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": rows, "annotations": captions}))
    return Source(images, tmp_path / "captions.json")


def contents(folder: Path) -> dict:
    bad: list = []
    found = {s.image_id: s for shard in list_shards(str(folder)) for s in read_shard(shard, bad.append)}
    assert not bad
    return found


def edit(path: Path, key: str, change) -> None:
    value = json.loads(path.read_text())
    change(value[key])
    path.write_text(json.dumps(value))


def test_bytes_captions_and_counts(coco: Source, tmp_path: Path) -> None:
    report = pack_coco(coco, tmp_path / "out", samples_per_shard=3, workers=1)
    found = contents(tmp_path / "out")
    assert found.keys() == set(range(1, 8))
    assert all(found[i].image == (coco.images / f"{i}.jpg").read_bytes() for i in found)
    assert found[3].captions == ("c3 0", "c3 1")
    index = read_index(tmp_path / "out")
    assert (index.samples, len(index.shards), report.captions) == (7, 3, 14)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.json", *(s.name for s in index.shards)}


def test_images_that_a_split_names_and_the_captions_lack_are_listed(coco: Source, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text('{"test": [2, 99, 3]}')
    source = dataclasses.replace(coco, ids=tmp_path / "ids.json", split="test")
    with pytest.raises(DataError, match=r"1 not in the captions \[99\]"):
        pack_coco(source, tmp_path / "out", workers=1)
    assert pack_coco(source, tmp_path / "out", workers=1, allow_missing=True).problems == {
        "not in the captions": [99]
    }
    assert contents(tmp_path / "out").keys() == {2, 3}


def test_two_at_once_do_not_meet(coco: Source, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "excitor_mm", "pack-coco", "--images", str(coco.images)]
    command += ["--captions", str(coco.captions), "--samples-per-shard", "1", "--workers", "1"]
    both = [
        subprocess.Popen([*command, "--output", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert "Another process packs" in "".join(errors) or "already packed" in "".join(errors)
    pack_coco(coco, tmp_path / "alone", samples_per_shard=1, workers=1)
    assert read_index(tmp_path / "out").shards == read_index(tmp_path / "alone").shards
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".tar", ".json"}


def test_same_bytes_for_any_number_of_workers(coco: Source, tmp_path: Path) -> None:
    for workers in (1, 3):
        pack_coco(coco, tmp_path / str(workers), samples_per_shard=3, workers=workers)
    hashes = [[shard.sha256 for shard in read_index(tmp_path / n).shards] for n in ("1", "3")]
    assert hashes[0] == hashes[1]


def test_unusable_images_are_named_and_nothing_is_lost(coco: Source, tmp_path: Path) -> None:
    (coco.images / "2.jpg").unlink()
    (coco.images / "5.jpg").write_bytes(b"not a picture")
    assert coco.captions is not None
    edit(coco.captions, "images", lambda rows: rows.append({"id": 7, "file_name": "again.jpg"}))
    edit(coco.captions, "annotations", lambda rows: rows.__setitem__(slice(0, 2), []))
    with pytest.raises(
        DataError, match=r"1 duplicate \[7\].*1 missing \[2\].*1 unreadable \[5\].*without captions \[1\]"
    ):
        pack_coco(coco, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "index.json").exists()
    report = pack_coco(coco, tmp_path / "out", workers=1, allow_missing=True)
    assert contents(tmp_path / "out").keys() == {3, 4, 6}
    assert report.problems == {"duplicate": [7], "missing": [2], "unreadable": [5], "without captions": [1]}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_repeated_gives_the_same_shards(coco: Source, tmp_path: Path, how: signal.Signals) -> None:
    pack_coco(coco, tmp_path / "whole", samples_per_shard=2, workers=1)
    command = [sys.executable, "-m", "excitor_mm", "pack-coco", "--images", str(coco.images)]
    command += ["--captions", str(coco.captions), "--output", str(tmp_path / "cut")]
    command += ["--samples-per-shard", "2", "--workers", "1"]
    process = subprocess.Popen(
        command, start_new_session=True, preexec_fn=interruptible, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("cut/*.tar")) and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, how)  # its workers, too, as by Ctrl-C in a terminal
    _, error = process.communicate()
    if how == signal.SIGINT:
        assert (process.returncode, error.splitlines()[-1:]) == (130, ["excitor-mm: interrupted"])
        assert "Traceback" not in error
    if not (tmp_path / "cut" / "index.json").exists():
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert read_index(tmp_path / "cut").shards == read_index(tmp_path / "whole").shards
    assert {path.suffix for path in (tmp_path / "cut").iterdir()} == {".tar", ".json"}


def test_other_input_into_a_half_finished_folder_is_refused(coco: Source, tmp_path: Path) -> None:
    (coco.images / "2.jpg").unlink()
    with pytest.raises(DataError):
        pack_coco(coco, tmp_path / "out", workers=1)
    with pytest.raises(DataError, match="half-finished"):
        pack_coco(coco, tmp_path / "out", workers=1, samples_per_shard=2)


def test_karpathy_split_is_joined_by_cocoid(coco: Source, tmp_path: Path) -> None:
    def row(cocoid: int, split: str) -> dict:
        names = {"filepath": ".", "filename": f"{cocoid}.jpg", "split": split}
        return {**names, "imgid": 99, "cocoid": cocoid, "sentences": [{"raw": f"k{cocoid}", "tokens": []}]}

    splits = {1: "train", 2: "restval", 3: "val", 4: "test"}
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": [row(i, split) for i, split in splits.items()]}))
    expected = {"train": {1, 2}, "train-only": {1}, "restval": {2}, "val": {3}, "test": {4}}
    for split, ids in expected.items():
        pack_coco(Source(coco.images, karpathy=path, split=split), tmp_path / split, workers=1)
        found = contents(tmp_path / split)
        assert found.keys() == ids
        assert all(found[i].captions == (f"k{i}",) for i in ids)


def test_images_without_captions_are_packed(coco: Source, tmp_path: Path) -> None:
    """test2014 comes as image_info_test2014.json, without annotations."""
    images = json.loads(coco.captions.read_text())["images"]
    (tmp_path / "info.json").write_text(json.dumps({"images": images}))
    report = pack_coco(Source(coco.images, tmp_path / "info.json"), tmp_path / "out", workers=1)
    assert (report.samples, report.captions, report.problems) == (7, 0, {})


def test_larger_images_are_shrunk_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(size=(100, 60)))
    rows = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pack_coco(Source(tmp_path, tmp_path / "c.json"), tmp_path / "out", max_size=30, workers=1)
    from excitor_mm.data.images import load_image

    assert load_image(contents(tmp_path / "out")[1].image).size == (50, 30)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not readable JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [{"id": 1}]}', "lacks one of"),
        ('{"images": [{"id": "1", "file_name": "x"}]}', "expected a whole number"),
        ('{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 1, "caption": 3}]}', "not a text"),
    ],
)
def test_bad_annotation_files(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        pack_coco(Source(tmp_path, tmp_path / "c.json"), tmp_path / "out")
