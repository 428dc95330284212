"""Ask about a picture: `python tools/ask.py img.jpg "question"`. The same as `excitor-mm ask`."""

import sys

from excitor_mm.cli import main

sys.exit(main(["ask", *sys.argv[1:]]))
