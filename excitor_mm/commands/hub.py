"""push: an adapter to the Hub."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from excitor_mm.options import Command


def _push_options(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path, help="adapter folder")
    parser.add_argument("repo", type=str, help="user/name on the Hub; made where it does not exist")
    parser.add_argument("--report", type=Path | None, default=None, help="report.json, for the card's scores")
    parser.add_argument("--private", action="store_true", help="a new repository that others do not see")
    parser.add_argument("--card-only", action="store_true", help="print the card and upload nothing")


def _push(options: Namespace) -> int:
    from excitor_mm.adapter import card_of, load_config
    from excitor_mm.files import read_json

    report = read_json(options.report) if options.report else None
    if options.card_only:
        print(card_of(options.repo, load_config(options.adapter), report), end="")
        return 0
    from excitor_mm.hub.upload import push_adapter

    print(push_adapter(options.adapter, options.repo, private=options.private or None, report=report))
    return 0


COMMANDS = (Command("push", "Upload an adapter to the Hub, with a model card.", _push_options, _push),)
