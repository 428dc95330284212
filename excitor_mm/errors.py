"""The exception tree.

    ExcitorError
    +-- ConfigError       a value in a YAML file or on the command line
    +-- DataError         an annotation file, a shard, an image
    +-- AdapterError      an adapter folder, or one made for another base model or encoder
    +-- DependencyError   something the machine lacks: Java, default weights, an optional package

Every message is one sentence that says what was got, what was expected and what to do. The command
line prints it without a traceback and exits with status 2.
"""


class ExcitorError(Exception):
    """Anything the user can put right; the message says how."""


class ConfigError(ExcitorError):
    """A value in a YAML file or on the command line cannot be used."""


class DataError(ExcitorError):
    """An annotation file, a shard or an image cannot be used."""


class AdapterError(ExcitorError):
    """An adapter folder is damaged, or was made for another base model or encoder."""


class DependencyError(ExcitorError):
    """The machine lacks something: Java, the default weights, an optional package."""
