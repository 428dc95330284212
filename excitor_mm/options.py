"""A parser of commands that answers a misspelt key with the right one."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, get_loader, set_loader

from excitor_mm.config import RunConfig
from excitor_mm.console import log


class Command(NamedTuple):
    """One command; "evaluate captions" is `captions` below `evaluate`."""

    name: str
    help: str
    options: Callable[[ArgumentParser], None]
    """Adds the options to a parser."""
    run: Callable[[Namespace], int]
    """Does the work; returns the exit status."""


class _Parser(ArgumentParser):
    """Unknown keys are answered with the nearest known one."""

    known: Sequence[str] = ()
    """Keys and options to choose the nearest from."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream; a configuration that is no text is a sentence, too."""
        try:
            return super().parse_args(*args, **kwargs)
        except (UnicodeDecodeError, RecursionError, OverflowError) as error:
            return self.error(f"The configuration is not YAML in UTF-8, or a number is too large ({error}).")

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one sentence and exit with status 2."""
        text = " ".join(str(message)[:LONGEST_ERROR].split())
        text = re.sub(OPTIONAL_VALUE, r"\1; got ", text)
        if unknown := re.search(UNKNOWN, text):
            near = difflib.get_close_matches(unknown[1], self.known, n=1)
            text += f". Did you mean {near[0]}?" if near else ""
        log(f"excitor-mm: {text}")
        raise SystemExit(2)


def _load_without_aliases(text: str) -> Any:
    """YAML in which nothing is said by reference: nine lines of aliases can stand for more than any memory holds."""
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise yaml.YAMLError("aliases (*name) are not read: write the value out")
    try:
        return _load_yaml(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        raise yaml.YAMLError(str(error)) from error


_load_yaml = get_loader("yaml")
set_loader("yaml", _load_without_aliases, exceptions=(yaml.YAMLError,))

LONGEST_ERROR = 1000  # characters; the rest is the value that was given
UNKNOWN = r"(?:does not accept option|[Uu]nrecognized arguments:?) '?(?:--)?([\w.-]+)"
OPTIONAL_VALUE = (
    r"Does not validate against any of the Union subtypes .*? Errors: - (.+?) - Expected a <class 'NoneType'> .*"
    "Given value: "
)
"""jsonargparse's words for a value that may be left out and is not as it should be."""


def config_keys(cls: type, prefix: str = "") -> list[str]:
    """All dotted keys of a nested dataclass."""
    keys = []
    for item in dataclasses.fields(cls):
        keys.append(prefix + item.name)
        if item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
            if dataclasses.is_dataclass(value):
                keys += config_keys(type(value), f"{prefix}{item.name}.")
    return keys


GROUPS = {
    "shards": "Look into shards.",
    "evaluate": "Score predictions: captions, vqa or scienceqa.",
    "submit": "Write or check a file for a leaderboard's server: coco, vqa or vizwiz.",
}
"""Commands that only hold others."""


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of examples; commands take over the formatter of what holds them."""


def build_parser(
    commands: Iterable[Command], examples: Mapping[str, Sequence[str]], words: Sequence[str] | None = None
) -> ArgumentParser:
    """The parser of all commands; `--help` of a command ends with its examples.

    Args:
        commands: in the order of `--help`.
        examples: of each command, by its name.
        words: what will be parsed. A command that they cannot name stays without options, which take half of the time
            of `--help`. None: all have theirs.
    """
    parser = _Parser(prog="excitor-mm", description="Images to text with LLaMA-Excitor.", formatter_class=_Help)
    known = config_keys(RunConfig)
    groups = {"": parser.add_subcommands()}
    for command in commands:
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            holder = _Parser(description=GROUPS[group], formatter_class=_Help)
            groups[""].add_subcommand(group, holder, help=GROUPS[group])
            groups[group] = holder.add_subcommands()
        lines = "\n  ".join(("examples:", *examples[command.name]))
        sub = _Parser(description=command.help, epilog=lines)
        if words is None or set(command.name.split()) <= set(words):
            command.options(sub)
        sub.known = parser.known = known
        known += [option.lstrip("-") for action in sub._actions for option in action.option_strings]
        groups[group].add_subcommand(name, sub, help=command.help)
    return parser
