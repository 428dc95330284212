"""Numbers of a certain range, as types of fields and options: jsonargparse checks them while parsing.

To a type checker they are plain int and float. The two views stand in a file of their own, because jsonargparse
takes the checker's view of the module that uses the names.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    ClosedUnitInterval = float
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
    )

__all__ = ["ClosedUnitInterval", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt"]
