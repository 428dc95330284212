"""Shards and streams: damage is counted, nothing is lost or doubled, a resumed stream goes on exactly."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excitor_mm.data.check import Plan, check_shards
from excitor_mm.data.order import lanes_of
from excitor_mm.data.samples import BadSample, Sample, sample_to_fields
from excitor_mm.data.shards import BadRecord, list_shards, read_shard
from excitor_mm.data.stream import EvaluationStream, TrainingStream, read_stream, reader_slice, training_steps
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


def image_id(sample: Sample, epoch: int) -> tuple[int | str, int]:
    return sample.image_id, epoch


def fail_on_three(sample: Sample, epoch: int) -> int | str:
    if sample.image_id == 3:
        raise BadSample("test", "bad by design")
    return sample.image_id


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return list_shards(str(make_shards(tmp_path_factory.mktemp("data") / "s", [5, 1, 7, 4, 3])))


@given(readers=st.integers(1, 12))
def test_readers_share_all_samples_and_none_starves(shards: tuple[str, ...], readers: int) -> None:
    parts = [part for reader in range(readers) for part in reader_slice(shards, reader, readers)]
    for shard in shards:
        slices = [range(first, 100, step) for name, first, step in parts if name == shard]
        assert sorted(i for s in slices for i in s) == list(range(100))
    assert all(reader_slice(shards, reader, readers) for reader in range(readers))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 2), (2, 4)])
def test_evaluation_gives_each_sample_once(shards: tuple[str, ...], ranks: int, workers: int) -> None:
    seen: list[int] = []
    for rank in range(ranks):
        stream = EvaluationStream(shards, image_id, list, batch_size=3, rank=rank, world_size=ranks)
        for item in read_stream(stream, workers):
            seen += [i for i, _ in item.batch]
    assert sorted(seen) == list(range(20))


def train_steps(shards: tuple[str, ...], count: int, start: int = 0, workers: int = 0, **options) -> list[dict]:
    """Position -> example, for each step."""
    values = {"batch_size": 6, "seed": 5, "shuffle_buffer": 8, "max_bad_fraction": 0.5, **options}
    stream = TrainingStream(shards, values.pop("transform", image_id), start_step=start, **values)
    steps = training_steps(stream, workers)
    return [next(steps).examples for _ in range(count)]


def test_training_order_is_deterministic_shuffled_and_complete(shards: tuple[str, ...]) -> None:
    steps = train_steps(shards, 60)
    assert steps == train_steps(shards, 60)
    assert steps != train_steps(shards, 60, seed=6)
    flat = [pair for step in steps for pair in step.values()]
    epochs = [[i for i, e in flat if e == epoch] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 17), ranks=st.sampled_from([1, 2, 3, 6]), lanes=st.integers(1, 9))
def test_any_number_of_ranks_sees_the_same_samples_from_any_step(
    shards: tuple[str, ...], start: int, ranks: int, lanes: int
) -> None:
    whole = train_steps(shards, 20, transform=fail_on_three, lanes=lanes)
    for rank in range(ranks):
        options = {"transform": fail_on_three, "lanes": lanes, "rank": rank, "world_size": ranks}
        for found, step in zip(train_steps(shards, 20 - start, start, **options), whole[start:], strict=True):
            assert found == {p: example for p, example in step.items() if p % ranks == rank}


@pytest.mark.parametrize(("start", "workers", "ranks"), [(0, 3, 1), (4, 2, 2), (7, 4, 1)])
def test_any_number_of_workers_sees_the_same_samples(
    shards: tuple[str, ...], start: int, workers: int, ranks: int
) -> None:
    whole = train_steps(shards, 12)
    found = train_steps(shards, 12 - start, start, workers, world_size=ranks)
    assert found == [{p: e for p, e in step.items() if p % ranks == 0} for step in whole[start:]]


@given(readers=st.integers(1, 9), lanes=st.integers(1, 9))
def test_readers_open_only_the_lanes_they_need(readers: int, lanes: int) -> None:
    opened = [lanes_of(reader, readers, lanes) for reader in range(readers)]
    assert set().union(*opened) == set(range(lanes))
    if lanes % readers == 0:  # then no lane is read twice
        assert sum(map(len, opened)) == lanes


def test_shards_without_samples_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [])
    with pytest.raises(DataError, match="no usable sample"):
        train_steps((str(path),), 1)


def test_a_worker_fails_with_a_sentence(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"no image") for n in range(150)])
    stream = TrainingStream([str(path)], _decode, batch_size=150, seed=0)
    with pytest.raises(DataError, match="not an image") as caught:
        next(training_steps(stream, workers=1))
    assert "Traceback" not in str(caught.value)


def test_bad_images_leave_their_place_empty_and_are_reported(shards: tuple[str, ...]) -> None:
    steps = training_steps(TrainingStream(shards, fail_on_three, batch_size=5, seed=0, max_bad_fraction=0.5), 0)
    found = [next(steps) for _ in range(8)]
    assert all(3 not in step.examples.values() for step in found)
    assert sum(5 - len(step.examples) for step in found) == sum(len(step.bad) for step in found) > 0
    assert {(record.key, record.reason) for step in found for record in step.bad} == {(f"{3:012d}", "test")}


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", [m for n in range(150) for m in (members(n) if n % 10 else [(f"{n}.jpg", b"")])]
    )
    assert len(read(path)[0]) == 150  # parse fine; the images fail
    stream = TrainingStream([str(path)], _decode, batch_size=10, seed=0, shuffle_buffer=0)
    with pytest.raises(DataError, match=r"not an image.*x\.tar"):
        for _ in training_steps(stream, 0):
            pass


def _decode(sample: Sample, epoch: int) -> int | str:
    from excitor_mm.data.images import load_image

    load_image(sample.image or b"")
    return sample.image_id


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


@pytest.mark.parametrize("sharers", [1, 3])
def test_a_bad_record_of_a_shared_shard_is_counted_once(tmp_path: Path, sharers: int) -> None:
    damaged = [m for n in range(12) for m in (members(n) if n % 4 else [(f"{n}.txt", b"no image")])]
    path = write_tar(tmp_path / "x.tar", damaged)
    bad = []
    for rank in range(sharers):
        stream = EvaluationStream([str(path)], image_id, list, batch_size=3, rank=rank, world_size=sharers)
        bad += [record.key for item in read_stream(stream, 0) for record in item.bad]
    assert sorted(bad) == ["0", "4", "8"]


def test_a_resumed_stream_judges_bad_samples_as_the_uninterrupted_one(tmp_path: Path) -> None:
    """Images that begin to fail after the resumed place stop the run just as soon as in a fresh one."""
    path = write_tar(tmp_path / "x.tar", [m for n in range(200) for m in members(n)])
    fresh = TrainingStream([str(path)], _always_bad_after(0), batch_size=10, seed=0, shuffle_buffer=0)
    resumed = TrainingStream(
        [str(path)], _always_bad_after(150), batch_size=10, seed=0, shuffle_buffer=0, start_step=15
    )
    counts = []
    for stream in (fresh, resumed):
        with pytest.raises(DataError, match="samples cannot be used") as caught:
            for _ in training_steps(stream, 0):
                pass
        counts.append(str(caught.value).split()[2])
    assert counts[0] == counts[1]


def _always_bad_after(first: int) -> Callable[[Sample, int], int | str]:
    def transform(sample: Sample, epoch: int) -> int | str:
        number = int(sample.image_id)
        if number >= first and number % 2:
            raise BadSample("test", "bad by design")
        return sample.image_id

    return transform
