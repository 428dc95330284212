"""What each command takes and does. Heavy modules are imported inside the command that needs them."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from excitor_mm.commands import (
    ask,
    caption,
    datasets,
    features,
    hub,
    insight,
    models,
    scores,
    serve,
    submissions,
    support,
)
from excitor_mm.commands.examples import EXAMPLES
from excitor_mm.options import build_parser

MODULES = (datasets, features, models, caption, ask, scores, submissions, insight, hub, serve, support)
COMMANDS = {command.name: command for module in MODULES for command in module.COMMANDS}


def make_parser(words: Sequence[str] | None = None) -> ArgumentParser:
    """The parser of all commands, with their examples; see `build_parser`."""
    return build_parser(COMMANDS.values(), EXAMPLES, words)
