"""startup: commands in a process of their own, with everything in the page cache."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from excitor_mm.adapter import load_config
from excitor_mm.defaults import PARTS, default_path
from suites.measure import Comparison, Side

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "data" / "photos" / "cat.jpg"
LOAD = """
import sys, torch, transformers, safetensors.torch
for path in sys.argv[1:]:
    for tensor in safetensors.torch.load_file(path).values():
        tensor.float().sum()
"""


def startup(options: Namespace) -> list[Comparison]:
    """The last side imports torch and transformers and reads every weight of the adapter's frozen parts once."""
    config = load_config(options.adapter)
    names = [config.language.path, *(encoder.weights or "" for encoder in config.vision)]
    paths = [default_path(name) if name in PARTS else Path(name) for name in names]
    weights = [str(file) for path in paths for file in ([path] if path.is_file() else path.glob("*.safetensors"))]
    adapter = ["--adapter", str(options.adapter)]
    return [
        Comparison("help", {"excitor-mm --help": _python("-m", "excitor_mm", "--help"), "python": _python("-c", "")}),
        Comparison(
            "first caption",
            {
                "tools/caption.py": _python(str(ROOT / "tools" / "caption.py"), str(PICTURE), *adapter),
                "import torch, transformers": _python("-c", "import torch, transformers"),
                "the imports, and the weights": _python("-c", LOAD, *weights),
            },
            facts={"new tokens": f"up to {config.decoding.max_new_tokens}", "beams": config.decoding.beams},
        ),
    ]


def _python(*arguments: str) -> Side:
    def side() -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)

    return side
