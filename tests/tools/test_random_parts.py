"""Random parts of a given size can be loaded again, by every command that takes an adapter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from excitor_mm.model import ExcitorModel

ROOT = Path(__file__).parents[2]
SIZES = ("--width", "64", "--inner-width", "128", "--layers", "2", "--heads", "2")


@pytest.mark.parametrize(("library", "encoder"), [("timm", "test_vit"), ("open_clip", "ViT-S-32-alt")])
def test_random_parts_can_be_loaded_again(library: str, encoder: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "random_parts.py"), "--output", str(tmp_path), *SIZES]
    subprocess.run([*command, "--library", library, "--encoder", encoder], check=True, capture_output=True, cwd=ROOT)
    model = ExcitorModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert model.caption(str(ROOT / "data" / "photos" / "cat.jpg"), max_new_tokens=2, min_new_tokens=2)
