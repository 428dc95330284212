"""The paper's formula, word for word and slow: the reference that the code is held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half

from excitor_mm.excitor import Excitor


def rows(block: Excitor, image: Tensor | None) -> tuple[Tensor, Tensor]:
    """K_e and V_e, both float[K + N, H*d]."""
    if image is None:
        return block.prompts, block.prompts
    key_map, value_map = block.visual_key_up, block.visual_value_up
    if hasattr(block, "visual_key_down"):
        key_map, value_map = key_map @ block.visual_key_down, value_map @ block.visual_value_down
    return torch.cat([block.prompts, image @ key_map.T]), torch.cat([block.prompts, image @ value_map.T])


def inner_attention(block: Excitor, words: Tensor, image: Tensor | None) -> Tensor:
    """softmax(Q_e K_e^T / sqrt(d)) of one sample, head by head and token by token: float[H, T, K + N]."""
    d = block.head_width
    query = (block.query_up @ block.query_down @ words.T).T
    keys, _ = rows(block, image)
    result = []
    for head in range(block.key_heads):
        part = slice(head * d, (head + 1) * d)
        scores = [keys[:, part] @ query[token, part] / math.sqrt(d) for token in range(len(words))]
        result.append(torch.stack([torch.softmax(score, dim=0) for score in scores]))
    return torch.stack(result)


def extra_key(block: Excitor, words: Tensor, image: Tensor | None) -> Tensor:
    """E for one sample: float[T, C], float[N, V] -> float[H, T, d]."""
    values = rows(block, image)[1].view(-1, block.key_heads, block.head_width).transpose(0, 1)
    return inner_attention(block, words, image) @ values


def attention_weights(
    layer, words: Tensor, image: Tensor | None, cos: Tensor, sin: Tensor, excited: bool = True
) -> Tensor:
    """softmax(S + g S_extra) of one sample with causal mask; without g S_extra if not `excited`: float[Q, T, T]."""
    block, d, length = layer.k_proj.excitor, layer.head_dim, len(words)

    def heads(x: Tensor) -> Tensor:
        return x.view(length, -1, d).transpose(0, 1)

    def rotate(x: Tensor) -> Tensor:
        return x * cos + rotate_half(x) * sin

    query, key = rotate(heads(layer.q_proj(words))), rotate(heads(layer.k_proj.base(words)))
    extra = rotate(extra_key(block, words, image))
    output = []
    for head in range(len(query)):
        group = head // layer.num_key_value_groups
        total = query[head] @ key[group].T / math.sqrt(d)
        if excited:
            total = total + block.gate[group] * (query[head] @ extra[group].T / math.sqrt(d))
        total = total.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        output.append(torch.softmax(total, dim=-1))
    return torch.stack(output)


def attention(layer, words: Tensor, image: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """softmax(S + g S_extra) V of one sample through W_o: float[T, C] -> float[T, C]."""
    weights = attention_weights(layer, words, image, cos, sin)
    values = layer.v_proj(words).view(len(words), -1, layer.head_dim).transpose(0, 1)
    output = [row @ values[head // layer.num_key_value_groups] for head, row in enumerate(weights)]
    return layer.o_proj(torch.cat(output, dim=-1))
