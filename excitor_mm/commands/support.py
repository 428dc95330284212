"""doctor and completion: about the program itself."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.commands.models import shipped
from excitor_mm.options import Command


def _doctor_options(parser: ArgumentParser) -> None:
    parser.add_argument("--adapter", type=Path | None, default=None, help="tried on one picture; the shipped one")
    parser.add_argument("--quick", action="store_true", help="load no model")


def _doctor(options: Namespace) -> int:
    from excitor_mm.doctor import examine

    def smoke() -> str:
        from excitor_mm.model import ExcitorModel

        adapter = options.adapter or shipped("adapters/coco-small", "--adapter FOLDER")
        return ExcitorModel.from_pretrained(adapter).caption(shipped("photos/cat.jpg", "--quick"))

    healthy = True
    for finding in examine(None if options.quick else smoke):
        print(f"- [{'ok' if finding.ok else '!!'}] {finding.check}: {finding.text}", flush=True)
        healthy &= finding.ok
    return 0 if healthy else 1


def _completion_options(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="whose script is printed")


def _completion(options: Namespace) -> int:
    from excitor_mm.commands import make_parser

    print(make_parser().get_completion_script(f"shtab-{options.shell}"))
    return 0


COMMANDS = (
    Command("doctor", "What this machine has and lacks; for bug reports.", _doctor_options, _doctor),
    Command("completion", "A script that completes commands and options.", _completion_options, _completion),
)
