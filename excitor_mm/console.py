"""Progress and log lines on stderr; results belong to stdout.

On a terminal: a rich progress bar. Elsewhere (a log file, CI): one plain line every ten seconds.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


def log(message: str) -> None:
    """Write one line to stderr."""
    print(message, file=sys.stderr, flush=True)


def seconds_as_clock(seconds: float) -> str:
    """90 -> '1:30'; 3700 -> '1:01:40'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A context manager: `with Progress("packing", total=n, unit="images") as bar: bar.advance()`.

    Args:
        description: what is being done, in a word or two.
        total: number of units, or None when it is not known.
        unit: plural noun of what is counted.
        done: units finished before this process started (a resumed run).
        shown: False in all but one of several processes.
    """

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0, shown: bool = True) -> None:
        self.description, self.total, self.unit, self.shown = description, total, unit, shown
        self.start_count = self.count = done
        self.note = ""

    def __enter__(self) -> Progress:
        self.started = self.last_line = time.monotonic()
        self._bar = None
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.count, rate="", note=""
            )
        return self

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` as done; `note` is shown behind the bar."""
        self.count += units
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.count, rate=f"{self._rate():.1f}/s", note=self.note)
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL:
            self._plain_line()

    def _rate(self) -> float:
        """Units of this process a second."""
        return (self.count - self.start_count) / max(time.monotonic() - self.started, 1e-9)

    def _plain_line(self) -> None:
        self.last_line, rate = time.monotonic(), self._rate()
        if not self.shown:
            return
        line = f"{self.description}: {self.count}"
        if self.total is not None:
            line += f"/{self.total}"
        line += f" {self.unit}, {rate:.1f}/s"
        if self.total is not None and rate > 0:
            line += f", {seconds_as_clock((self.total - self.count) / rate)} left"
        log(line + (f", {self.note}" if self.note else ""))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._plain_line()
