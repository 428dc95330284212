"""What each command takes and does. Heavy modules are imported inside the command that needs them."""

from excitor_mm.commands import caption, datasets, hub, insight, models, scores, serve

MODULES = (datasets, models, caption, scores, insight, hub, serve)
COMMANDS = {command.name: command for module in MODULES for command in module.COMMANDS}
