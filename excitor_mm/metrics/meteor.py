"""METEOR 1.5: a Java child on a pipe, one line a question and one line an answer.

pycocoevalcap's wrapper of the same jar finds `java` by name, follows the machine's decimal commas, and dies
with a broken pipe that says nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from excitor_mm.errors import DependencyError
from excitor_mm.metrics.bootstrap import Floats
from excitor_mm.metrics.java import find_java

SEPARATOR = "|||"
CHUNKS, MATCHES = 20, slice(21, 23)  # places among the 23 counts; the first two are the lengths


class Meteor:
    """A context manager around the Java process.

    Raises:
        DependencyError: Java ended, or answered with something that is not numbers.
    """

    def __enter__(self) -> Meteor:
        from pycocoevalcap.meteor import meteor

        folder = Path(meteor.__file__).parent
        locale = ["-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]  # points, not commas
        command = [str(find_java()), *locale, "-Xmx2G", "-jar", meteor.METEOR_JAR]
        self.process = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def statistics(self, caption: str, references: Sequence[str]) -> list[float]:
        """The 23 counts of one caption; they add up over captions."""
        texts = [text.replace(SEPARATOR, " ") for text in (*references, caption)]
        self._write(f" {SEPARATOR} ".join(["SCORE", *texts]))
        counts = self._numbers()
        lengths, matches = counts[:2], counts[MATCHES]
        if matches == lengths and counts[CHUNKS] == 1:
            counts[CHUNKS] = 0  # a perfect match is not fragmented; METEOR's own sum over captions says so, too
        return counts

    def score(self, statistics: Floats | Sequence[float]) -> float:
        """The score of a caption or, of summed statistics, of a set."""
        self._write(f"EVAL {SEPARATOR} {' '.join(str(float(value)) for value in statistics)}")
        self._numbers()  # the score of each caption, then that of all: they are one here
        (score,) = self._numbers()
        return score

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer tells

    def _numbers(self) -> list[float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            numbers = []
        if not numbers or not np.isfinite(numbers).all():
            what = f"answered {line.strip()!r}" if line else f"ended with status {self.process.wait(timeout=60)}"
            raise DependencyError(f"METEOR's Java {what} instead of a score: try another Java or more memory.")
        return numbers
