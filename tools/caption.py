"""Caption pictures: `python tools/caption.py img.jpg`. The same as `excitor-mm caption img.jpg`."""

import sys

from excitor_mm.cli import main

sys.exit(main(["caption", *sys.argv[1:]]))
