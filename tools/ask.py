"""Ask about a picture: `python tools/ask.py img.jpg "question"`. The same as `excitor-mm ask`."""

from excitor_mm.cli import run

run("ask")
