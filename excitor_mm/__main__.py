"""`python -m excitor_mm` is `excitor-mm`."""

from excitor_mm.cli import run

run()
