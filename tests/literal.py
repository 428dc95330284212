"""The paper's formula, word for word and slow: the reference that the code is held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half

from excitor_mm.excitor import Excitor


def extra_key(block: Excitor, words: Tensor, image: Tensor | None) -> Tensor:
    """E for one sample, head by head and token by token: float[T, C], float[N, V] -> float[H, T, d]."""
    d = block.head_width
    query = (block.query_up @ block.query_down @ words.T).T
    keys = values = block.prompts
    if image is not None:
        key_map, value_map = block.visual_key_up, block.visual_value_up
        if hasattr(block, "visual_key_down"):
            key_map, value_map = key_map @ block.visual_key_down, value_map @ block.visual_value_down
        keys = torch.cat([block.prompts, image @ key_map.T])
        values = torch.cat([block.prompts, image @ value_map.T])
    result = []
    for head in range(block.key_heads):
        part = slice(head * d, (head + 1) * d)
        rows = []
        for token in range(len(words)):
            scores = keys[:, part] @ query[token, part] / math.sqrt(d)
            rows.append(torch.softmax(scores, dim=0) @ values[:, part])
        result.append(torch.stack(rows))
    return torch.stack(result)


def attention(layer, words: Tensor, image: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """softmax(S + g S_extra) V of one sample through W_o, with causal mask: float[T, C] -> float[T, C]."""
    block, d, length = layer.k_proj.excitor, layer.head_dim, len(words)

    def heads(x: Tensor) -> Tensor:
        return x.view(length, -1, d).transpose(0, 1)

    def rotate(x: Tensor) -> Tensor:
        return x * cos + rotate_half(x) * sin

    query, key = rotate(heads(layer.q_proj(words))), rotate(heads(layer.k_proj.base(words)))
    value, extra = heads(layer.v_proj(words)), rotate(extra_key(block, words, image))
    output = []
    for head in range(len(query)):
        group = head // layer.num_key_value_groups
        scores = query[head] @ key[group].T / math.sqrt(d)
        extra_scores = query[head] @ extra[group].T / math.sqrt(d)
        total = scores + block.gate[group] * extra_scores
        total = total.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        output.append(torch.softmax(total, dim=-1) @ value[group])
    return layer.o_proj(torch.cat(output, dim=-1))
