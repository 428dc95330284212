"""Streams: nothing is lost or doubled, damage is counted, a resumed stream goes on exactly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excitor_mm.data.order import lanes_of
from excitor_mm.data.samples import BadSample, Sample
from excitor_mm.data.shards import list_shards
from excitor_mm.data.stream import EvaluationStream, TrainingStream, read_stream, reader_slice, training_steps
from excitor_mm.errors import DataError
from tests.conftest import make_shards
from tests.data.test_shards import members, read, write_tar


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


READS_AND_WAITS = """
import sys, time
from excitor_mm.data.stream import EvaluationStream, read_stream
from tests.data.test_stream import megabyte
for _ in read_stream(EvaluationStream(sys.argv[1:], megabyte, list, batch_size=1), workers=2):
    print("read", flush=True)
    time.sleep(60)
"""


def megabyte(sample: Sample, epoch: int) -> str:
    """More than a pipe holds, so that a reader waits for somebody to take it."""
    return "x" * 2**20


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_no_reader_outlives_the_process_it_reads_for(shards: tuple[str, ...], end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", READS_AND_WAITS, *shards], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        readers = psutil.Process(process.pid).children(recursive=True)
        assert len(readers) == 2
        getattr(process, end)()
        process.stdout.close()
    left = psutil.wait_procs(readers, timeout=15)[1]  # torch's own readers look for their parent every 5 seconds
    for reader in left:
        reader.kill()
    assert not left


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
