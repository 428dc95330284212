"""Trained parts switched off for a while: `with switched_off("excitor"): ...`.

A switch holds in the thread that threw it and nowhere else. Nothing is written on a module, so an error inside
the block leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Part = Literal["excitor", "lora"]
_OFF: ContextVar[frozenset[str]] = ContextVar("switched_off", default=frozenset())


@contextmanager
def switched_off(*parts: Part) -> Iterator[None]:
    """Inside the block these parts add nothing, in this thread."""
    token = _OFF.set(_OFF.get().union(parts))
    try:
        yield
    finally:
        _OFF.reset(token)


def is_off(part: Part) -> bool:
    """True inside a `switched_off(part)` block."""
    return part in _OFF.get()
