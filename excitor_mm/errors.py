"""The exception tree.

    ExcitorError
    +-- ConfigError       a value in a YAML file or on the command line
    +-- DataError         an annotation file, a shard, an image
    +-- AdapterError      an adapter folder, or one made for another base model or encoder
    +-- DependencyError   something the machine lacks: Java, default weights, an optional package
    +-- Stopped           a signal ended a run, which was saved

Every message is one sentence that says what was got, what was expected and what to do. The command
line prints it without a traceback and exits with `status`.
"""


class ExcitorError(Exception):
    """Anything the user can put right; the message says how."""

    status = 2
    """Exit status of the command line."""


class ConfigError(ExcitorError):
    """A value in a YAML file or on the command line cannot be used."""


class DataError(ExcitorError):
    """An annotation file, a shard or an image cannot be used."""


class AdapterError(ExcitorError):
    """An adapter folder is damaged, or was made for another base model or encoder."""


class DependencyError(ExcitorError):
    """The machine lacks something: Java, the default weights, an optional package."""


class Stopped(ExcitorError):
    """A signal ended a run after it was saved; the status is 128 + its number, as shells say it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number
