"""Fetching is safe: locks are given back, killed runs leave nothing for long, a full disk is one sentence."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from excitor_mm.defaults import cache_folder, default_path, fetch
from excitor_mm.errors import DependencyError

NAME = "efficientnet-lite0"
SMALL = fetch.SOURCES[NAME]


def write_folder(member: Path, target: Path) -> None:
    """A converter of a folder part."""
    target.mkdir()
    (target / "weights").write_bytes(member.read_bytes()[:100])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one small part, real in all but its converter."""
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "SOURCES", {NAME: dataclasses.replace(SMALL, convert=write_folder)})
    return cache_folder()


def test_a_complete_cache_waits_for_nobody(cache: Path) -> None:
    fetch.fetch_defaults()
    with FileLock(cache / ".lock"):
        assert fetch.fetch_defaults() == {NAME: default_path(NAME)}


def test_force_puts_a_damaged_part_right(cache: Path) -> None:
    folder = fetch.fetch_defaults()[NAME]
    good = (folder / "weights").read_bytes()
    (folder / "weights").write_bytes(b"damaged")
    (folder / "stray").touch()
    fetch.fetch_defaults()
    assert (folder / "weights").read_bytes() == b"damaged"
    fetch.fetch_defaults(force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"weights": good}
    assert {path.name for path in cache.iterdir()} == {folder.name, ".lock"}


def test_lock_is_given_back_after_a_failure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.SOURCES, NAME, dataclasses.replace(SMALL, sha256="0" * 64))
    with pytest.raises(DependencyError) as kept:  # keeps the frames of the failure alive
        fetch.fetch_defaults()
    FileLock(cache / ".lock").acquire(timeout=0)
    assert "sha256" in str(kept.value)


@pytest.mark.parametrize("moment", [0.0, 0.4, 0.9])
def test_next_run_cleans_up_after_a_killed_one(
    moment: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with its downloads, `moment` seconds after its first file, and run again."""
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    code = f"import excitor_mm.defaults.fetch as f; f.SOURCES = {{'{NAME}': f.SOURCES['{NAME}']}}; f.fetch_defaults()"
    killed = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    while not list(cache_folder().glob(".*-*")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    time.sleep(moment)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    monkeypatch.setattr(fetch, "SOURCES", {NAME: SMALL})
    fetch.fetch_defaults()
    assert {path.name for path in cache_folder().iterdir()} == {default_path(NAME).name, ".lock"}


def test_full_disk_while_tensors_are_written_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of a file, in a process of its own, fails the same write as a full disk does."""
    code = f"""
import dataclasses, resource, signal
import excitor_mm.defaults.fetch as f
source = f.SOURCES["{NAME}"]
def convert(member, target):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    source.convert(member, target)
f.SOURCES = {{"{NAME}": dataclasses.replace(source, convert=convert)}}
try:
    f.fetch_defaults()
except f.DependencyError as error:
    print(error)
"""
    environment = {**os.environ, "EXCITOR_MM_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "free some space" in done.stdout, done.stderr
    assert [path.name for path in next(tmp_path.iterdir()).iterdir()] == [".lock"]
