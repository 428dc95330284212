"""First queries that tell the words of the prompt apart.

An Excitor sees a word through A T alone, (1) of excitor.py. A random A does not tell words apart at first: the
frozen layer gives T far below unit scale, and most of T is common to all words, so the inner attention is flat and
every word gets nearly the same extra key, which the softmax of (5) ignores. Here A is chosen so that over the words
of the prompt

    A T_t = spread * R y_t

with y_t the whitened t-th word, in the directions in which words differ most, and R random: its mean over t is 0.
Measured in docs/log.md, 2026-11-27.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.prompts import CAPTION_INSTRUCTION, Turn

DIRECTIONS = 40
"""The others of a palette's some 45 differ too little between words to be magnified."""


@torch.no_grad()
def spread_queries(model: ExcitorModel, spread: float) -> None:
    """Choose A of every Excitor by the prompt of the model's first task.

    Args:
        model: with fresh Excitors; only their `query_down` changes.
        spread: standard deviation of A T over the words of the prompt.

    Raises:
        ConfigError: a prompt of fewer than three tokens: after the first, which is never influenced, two must differ.
    """
    task = next(iter(model.config.prompts.templates))
    ids = model.task_format(task).render(model.processor.tokenizer, (Turn(CAPTION_INSTRUCTION),)).ids
    if len(ids) < 3:
        raise ConfigError(
            f"excitor.query_spread is {spread}, but the prompt of the task {task} has {len(ids)} tokens: give it at "
            "least 3, or set excitor.query_spread to null."
        )
    for index, words in _layer_inputs(model, ids).items():
        excitor = model.language.excitors()[index]
        excitor.query_down.copy_(_spread(words[1:], excitor.query_down.shape[0], spread).T)


def _layer_inputs(model: ExcitorModel, ids: list[int]) -> dict[int, Tensor]:
    """T of every excited layer, by its index, as the frozen model computes it: float32[T, C]."""
    inputs: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda _, arguments: inputs.update({index: arguments[0][0].float()})

    layers = model.language.model.layers
    hooks = [layers[i].self_attn.k_proj.register_forward_pre_hook(keep(i)) for i in model.language.excitors()]
    try:
        with model.base_model():
            model.language(torch.tensor([ids], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _spread(words: Tensor, rank: int, spread: float) -> Tensor:
    """The smallest A^T with the A T of the module's docstring: [T, C] -> [C, r]."""
    directions = torch.linalg.svd(words - words.mean(dim=0), full_matrices=False).U
    count = min(DIRECTIONS, len(words) - 1, words.shape[1])
    whitened = directions[:, :count] * len(words) ** 0.5
    wanted = spread * whitened @ torch.randn(count, rank, device=words.device) * count**-0.5
    return torch.linalg.pinv(words) @ wanted
