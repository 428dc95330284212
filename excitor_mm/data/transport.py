"""What a reading process hands over: a tensor takes a file and a mapping, so all of one shape travel as one.

In: nested tuples, lists and dicts. Out: the same, its tensors views of the stacks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class Packed(NamedTuple):
    """An item on its way."""

    leaves: list[Any]
    """None where a tensor stood."""
    form: TreeSpec
    stacks: list[tuple[list[int], Tensor]]
    """Places among the leaves, and what stands there, stacked."""


def pack(item: Any) -> Packed:
    """In the reading process."""
    leaves, form = tree_flatten(item)
    places: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            places.setdefault((leaf.shape, leaf.dtype), []).append(place)
    stacks = [(alike, torch.stack([leaves[place] for place in alike])) for alike in places.values()]
    return Packed([None if isinstance(leaf, Tensor) else leaf for leaf in leaves], form, stacks)


def unpack(packed: Packed) -> Any:
    """The inverse."""
    for places, stack in packed.stacks:
        for place, tensor in zip(places, stack, strict=True):
            packed.leaves[place] = tensor
    return tree_unflatten(packed.leaves, packed.form)
