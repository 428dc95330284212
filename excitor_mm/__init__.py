"""Image captioning and visual question answering with LLaMA-Excitor.

`ExcitorModel` is loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from excitor_mm.errors import AdapterError, ConfigError, DataError, DependencyError, ExcitorError

if TYPE_CHECKING:
    from excitor_mm.model import ExcitorModel

__all__ = ["AdapterError", "ConfigError", "DataError", "DependencyError", "ExcitorError", "ExcitorModel"]


def __getattr__(name: str) -> Any:
    if name == "ExcitorModel":
        from excitor_mm.model import ExcitorModel

        return ExcitorModel
    raise AttributeError(f"module 'excitor_mm' has no attribute {name!r}")
