"""Disks that are full and folders that cannot be written: a sentence, and nothing lost."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from excitor_mm.config import RunConfig
from excitor_mm.errors import DataError, ExcitorError
from excitor_mm.files import write_bytes, write_folder
from excitor_mm.train import train


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may grow above 16 kB, as on a disk that is full. Not a fixture: pytest writes its own
    report, which may be a longer file, before it leaves a fixture."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    write_folder(tmp_path / "folder", {"file": b"old"})
    with small_disk(), pytest.raises(DataError, match="cannot be written"):
        write_bytes(tmp_path / "file", bytes(20_000))
    with small_disk(), pytest.raises(DataError, match="cannot be written"):
        write_folder(tmp_path / "folder", {"file": b"new", "large": bytes(20_000)})
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [(item.name, item.read_bytes()) for item in (tmp_path / "folder").iterdir()] == [("file", b"old")]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def test_a_run_on_a_full_disk_ends_with_a_sentence_and_can_be_resumed(run_config: RunConfig) -> None:
    """The disk fills up after the first checkpoint."""
    from tests.invariants.test_training import change

    config = change(run_config, save_every=1, log_every=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = Path(config.train.output)

    def fill() -> None:
        while not (output / "checkpoints" / "step-00000001" / "manifest.json").exists():
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        with pytest.raises(DataError, match="cannot be written"):
            train(change(config, steps=40))
    finally:
        filler.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train(change(config, steps=40, log_every=100, save_every=100), resume=True) == output / "best"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody may write: /proc")
def test_a_folder_that_cannot_be_written_is_a_sentence(run_config: RunConfig) -> None:
    from tests.invariants.test_training import change

    for write in (
        lambda: write_bytes(Path("/proc/excitor-mm/file"), b""),
        lambda: write_folder(Path("/proc/excitor-mm"), {}),
        lambda: train(change(run_config, output="/proc/excitor-mm")),
    ):
        with pytest.raises(ExcitorError, match="cannot be written"):
            write()
