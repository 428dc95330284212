"""Shards: damage is counted and named, and nothing that could run is ever opened."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from excitor_mm.data.check import Plan, check_shards
from excitor_mm.data.samples import sample_to_fields
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.errors import DataError
from tests.conftest import jpeg, make_sample, make_shards


def write_tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def members(number: int) -> list[tuple[str, bytes]]:
    sample = make_sample(number)
    return [(f"{sample.key}.{name}", data) for name, data in sample_to_fields(sample).items()]


def read(path: Path | str) -> tuple[list[int | str], list[BadRecord]]:
    bad: list[BadRecord] = []
    return [sample.image_id for sample in read_shard(str(path), bad.append)], bad


def test_duplicate_and_non_adjacent_members_are_counted(tmp_path: Path) -> None:
    doubled = members(2) + [members(2)[0]]
    path = write_tar(tmp_path / "x.tar", members(1) + doubled + members(3) + [members(1)[0]] + members(4))
    ids, bad = read(path)
    assert ids == [1, 3, 4]
    assert [record.reason for record in bad] == ["duplicate member", "not adjacent"]


def test_links_and_escapes_are_never_read(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = write_tar(tmp_path / "x.tar", [link, ("../b.jpg", b"x"), ("/c.jpg", b"x"), *members(5)])
    ids, bad = read(path)
    assert ids == [5]
    assert [record.reason for record in bad] == ["unsafe member"] * 3


def test_key_ends_at_the_first_dot_and_extensions_are_lower_cased(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("f.g/7.JPG", jpeg()), ("f.g/7.v2.txt", b"no"), ("f.g/7.txt", b"yes")])
    bad: list[BadRecord] = []
    (sample,) = read_shard(str(path), bad.append)
    assert (sample.key, sample.captions, bad) == ("f.g/7", ("yes",), [])


def test_the_folder_is_part_of_the_key(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a/1.jpg", jpeg()), ("b/1.jpg", jpeg()), ("b/1.txt", b"b")])
    bad: list[BadRecord] = []
    found = [(sample.key, sample.captions) for sample in read_shard(str(path), bad.append)]
    assert (found, bad) == ([("a/1", ()), ("b/1", ("b",))], [])


def test_bad_samples_cost_no_sleep_and_pickles_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("slept or unpickled")

    monkeypatch.setattr("time.sleep", forbidden)
    monkeypatch.setattr("pickle.loads", forbidden)
    bomb = b"cos\nsystem\n(S'true'\ntR."
    path = write_tar(
        tmp_path / "x.tar", [("1.pyd", bomb), *members(2), ("000000000002.pickle", bomb), ("3.json", b"{")]
    )
    ids, bad = read(path)
    assert (ids, [record.reason for record in bad]) == ([2], ["no image", "json invalid"])


def test_a_tar_cut_anywhere_gives_the_samples_before_the_cut(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", members(1) + members(2) + members(3)).read_bytes()
    end = whole.rstrip(b"\0").__len__()
    for cut in range(0, end, 97):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        ids, bad = read(path)
        assert ids == [1, 2, 3][: len(ids)]
        assert [record.reason for record in bad] == ["truncated or corrupt tar"], cut


def test_pipe_and_unknown_schemes_are_refused(tmp_path: Path) -> None:
    for spec in ("pipe:cat x.tar", "file:///x.tar", "ftp://x/y.tar"):
        with pytest.raises(DataError, match="scheme"):
            list_shards(spec)
    with pytest.raises(DataError, match="does not exist"):
        list_shards(str(tmp_path / "none"))
    with pytest.raises(DataError, match="brace list"):
        list_shards("x-{000000..")
    with pytest.raises(DataError, match="no .tar"):
        list_shards(str(tmp_path))


def test_brace_lists(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", [2, 3])
    assert len(list_shards(f"{folder}/tiny-{{000000..000001}}.tar")) == 2


def test_shard_doctor(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", [4, 2])
    check = check_shards(str(folder), ranks=2, workers=2, batch_size=1)
    assert check.ok
    assert check.plan == Plan(steps_per_epoch=6, lanes=2, lanes_per_reader=1, times_read=2)
    shard = folder / "tiny-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-11_000])
    broken = check_shards(str(folder))
    assert not broken.ok
    assert broken.shards[0].bad
    assert broken.shards[0].matches_index is False


def test_shard_doctor_counts_by_reason_and_plans(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    cut = jpeg(size=(200, 200))[:-400]
    scattered = [*members(1), ("7.jpg", cut), *members(2), *members(3), members(3)[0], *members(4), members(1)[0]]
    write_tar(first, scattered)
    write_tar(second, [*members(4), *members(5), *members(6)])
    second.write_bytes(second.read_bytes().rstrip(b"\0")[:-20])  # within the last member
    check = check_shards(str(tmp_path), ranks=2, workers=2, batch_size=2)
    assert [(shard.name, shard.good) for shard in check.shards] == [("a.tar", 3), ("b.tar", 1)]
    assert check.shards[0].bad == {"damaged": 1, "duplicate member": 1, "not adjacent": 1}
    assert check.shards[1].bad == {"truncated or corrupt tar": 1, "duplicate image": 1}
    # Four readers and two lanes: two readers for each shard, and each of the four samples is asked for once.
    plan = Plan(steps_per_epoch=2.0, lanes=2, lanes_per_reader=1, times_read=2)
    assert (check.plan, check.ok) == (plan, False)
    assert check_shards(str(tmp_path), workers=0).plan == Plan(4.0, lanes=2, lanes_per_reader=2, times_read=1)


def test_img2dataset_shard(shared: Path) -> None:
    ids, bad = read(shared / "shards" / "cc12m-train-0000.tar")
    assert (len(ids), bad) == (32, [])
