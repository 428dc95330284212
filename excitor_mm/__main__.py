"""`python -m excitor_mm` is `excitor-mm`."""

import sys

from excitor_mm.cli import main

sys.exit(main())
