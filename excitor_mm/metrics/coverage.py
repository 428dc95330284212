"""Predictions and references must name the same images or questions: a missing one is never scored around."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from excitor_mm.errors import DataError


def check_coverage(predicted: Collection[int | str], expected: Collection[int | str], what: str) -> None:
    """Refuse predictions for other items than the references have.

    Args:
        predicted, expected: ids.
        what: "images", "questions" or "problems".

    Raises:
        DataError: something is missing or too much, the ids are of another type, or nothing is expected.
    """
    if not expected:
        raise DataError(f"There are no reference {what}: check the references file and the split.")
    missing, extra = _without(expected, predicted), _without(predicted, expected)
    if missing and extra and not _without(map(str, missing), set(map(str, extra))):
        raise DataError(
            f"The ids of the predicted {what} are {type(extra[0]).__name__}, the references' "
            f"{type(missing[0]).__name__} ({extra[0]!r}, {missing[0]!r}): write them as in the references."
        )
    if missing or extra:
        raise DataError(
            f"The predictions lack {len(missing)} of {len(expected)} {what} {missing[:5]} and have {len(extra)} "
            f"others {extra[:5]}: predict exactly those of the references, or pass --subset where it is offered."
        )


def _without(ids: Iterable[int | str], others: Collection[int | str]) -> list[int | str]:
    return [i for i in ids if i not in others]
