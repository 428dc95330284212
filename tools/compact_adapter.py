"""Halve an adapter's size: `python tools/compact_adapter.py runs/x/best data/adapters/x`.

The tensors are stored in float16 and become float32 again on loading. Score the copy, not the original:
rounding can move a caption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file

from excitor_mm.adapter import LORA, TENSORS, load_config, save_adapter


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Store an adapter's tensors in float16.")
    parser.add_argument("adapter", type=Path, help="adapter folder to read")
    parser.add_argument("output", type=Path, help="adapter folder to write")
    options = parser.parse_args()
    config = load_config(options.adapter)
    halves = [
        {name: tensor.half() for name, tensor in load_file(options.adapter / file).items()}
        for file in (TENSORS, *([LORA] if config.lora.rank else []))
    ]
    save_adapter(options.output, config, *halves)


if __name__ == "__main__":
    main()
