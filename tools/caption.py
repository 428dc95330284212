"""Caption pictures: `python tools/caption.py img.jpg`. The same as `excitor-mm caption img.jpg`."""

from excitor_mm.cli import run

run("caption")
