"""The command line: `excitor-mm <command>`.

Results go to stdout, progress to stderr. Errors of `ExcitorError` are one sentence on stderr and exit status 2
(128 + n when signal n ended a run that was saved).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from multiprocessing import active_children
from typing import NoReturn

from excitor_mm.commands import COMMANDS, make_parser
from excitor_mm.console import log
from excitor_mm.errors import ExcitorError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    quieten()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = make_parser(arguments).parse_args(arguments)
        words = []
        while "subcommand" in options:
            words.append(options.subcommand)
            options = options[options.subcommand]
        return COMMANDS[" ".join(words)].run(options)
    except ExcitorError as error:
        log(f"excitor-mm: {error}")
        return error.status
    except KeyboardInterrupt:
        log("excitor-mm: interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout has gone
        sys.stderr.close()
        return 1
    except OSError as error:  # a path that is no path, a full disk, a lost connection
        what = error.filename or "A file"
        log(f"excitor-mm: {what} cannot be used ({error.strerror or error}): check the path and the free space.")
        return 2


def quieten() -> None:
    """Let libraries say nothing that is no error; before they are imported, and for child processes, too."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # decoding processes are forked


def run(*arguments: str) -> NoReturn:
    """The console command: `arguments`, then those of the process."""
    # The libraries' imports make a million objects that live to the end. Looking through them for garbage costs over
    # a second: while they are made at Python's own threshold of 700, and again when the process ends.
    gc.set_threshold(10_000)
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # file names need not be UTF-8
    status = main([*arguments, *sys.argv[1:]])
    gc.freeze()
    for child in active_children():  # readers ignore SIGTERM, and Python waits for children
        child.kill()
    sys.exit(status)
