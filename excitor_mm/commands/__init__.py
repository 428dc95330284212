"""What each command takes and does. Heavy modules are imported inside the command that needs them."""

from excitor_mm.commands import datasets, models, scores

COMMANDS = {command.name: command for command in (*datasets.COMMANDS, *models.COMMANDS, *scores.COMMANDS)}
