"""The Excitor block: one extra attention key per word token, built from learnable and visual prompts.

Zou et al., "LLaMA-Excitor: General Instruction Tuning via Indirect Feature Interaction", CVPR 2024
(arXiv 2404.00913). The paper adds a second score to each frozen attention layer, here per key head of
width d, for word tokens T, learnable prompts P, visual prompts I and the layer's frozen query Q:

    (1)  Q_e     = B A T                               low-rank Excitor query
    (2)  K_e     = [P ; W_k I],  V_e = [P ; W_v I]     prompts are keys and values, the image is projected
    (3)  E       = softmax(Q_e K_e^T / sqrt(d)) V_e    one extra key per word token
    (4)  S_extra = Q E^T / sqrt(d)
    (5)  out     = softmax(S + g S_extra) V            g: the trainable gate, V: the frozen values

Because S + g S_extra = Q (K + g E)^T / sqrt(d), the whole method is an addition to the attention keys:
this module returns g E, and `llama.py` adds it to the output of `k_proj`.

W_k and W_v are products U D of rank R. Only the softmax of (3) is not linear, so parameters are multiplied
with parameters first, per head, and words and image meet the small results: no tensor of shape [B, N, C] exists.

    scores  [P ; D_k I U_k^T] B A T = [1 ; D_k I] ([P ; U_k^T] B) A T
    g E     softmax [P ; D_v I U_v^T] g = (softmax [1 ; D_v I]) ([P ; U_v^T] g)

`project_visual` makes D I once per image, `absorb` what stands in the right pairs of brackets.

Dimensions: B batch, T word tokens, C model width, H key heads, d head width, K learnable prompts,
N visual prompts, V their width, R rank of the visual projections, r rank of the query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Absorbed(NamedTuple):
    """What depends on parameters alone, the same for all words and images; L = K + R."""

    query: Tensor
    """float[r, C], A."""
    scores: Tensor
    """float[H*L, r], [P ; U_k^T] B / sqrt(d): A T to the scores of prompts and to the visual query."""
    values: Tensor
    """float[H, L, d], g [P ; U_v^T]: what each prompt and each visual dimension adds to the key."""


class Excitor(nn.Module):
    """The trainable block of one attention layer. Parameters are fp32; the maths runs in the input's dtype, or in
    fp32 where that is fp16, so that no score overflows.

    Args:
        width: C, the model width.
        key_heads: H, the number of key heads (fewer than query heads under grouped-query attention).
        head_width: d.
        prompts: K, at least 1, so that a sample without an image still has a row to attend to.
        rank: r, the rank of the query projection.
        visual_width: V, or None for a text-only block.
        visual_rank: R, or None for full W_k and W_v (then R = V and D is the identity).
        gate_start: first value of every gate. With 0 the model starts exactly as the base model.
        prompt_std: standard deviation of the first learnable prompts.
    """

    def __init__(
        self,
        width: int,
        key_heads: int,
        head_width: int,
        *,
        prompts: int,
        rank: int,
        visual_width: int | None,
        visual_rank: int | None,
        gate_start: float,
        prompt_std: float,
    ) -> None:
        super().__init__()
        self.key_heads, self.head_width = key_heads, head_width
        key_width = key_heads * head_width
        self.gate = nn.Parameter(torch.full((key_heads,), gate_start))
        self.prompts = nn.Parameter(torch.randn(prompts, key_width) * prompt_std)
        self.query_down = _matrix(rank, width)  # A
        self.query_up = _matrix(key_width, rank)  # B
        if visual_width is None:
            return
        if visual_rank is not None:
            self.visual_key_down = _matrix(visual_rank, visual_width)  # D of W_k
            self.visual_value_down = _matrix(visual_rank, visual_width)  # D of W_v
        self.visual_key_up = _matrix(key_width, visual_rank or visual_width)  # U of W_k
        self.visual_value_up = _matrix(key_width, visual_rank or visual_width)  # U of W_v

    def project_visual(self, image: Tensor) -> Tensor:
        """D I for keys and values.

        Args:
            image: float[B, N, V], visual prompts.

        Returns:
            float[B, 2, N, R]; with full projections float[B, 1, N, V], the image itself.
        """
        image = image.to(wide(image.dtype))
        down = self.visual_down()
        return image[:, None] if down is None else torch.einsum("bnv,prv->bpnr", image, down.to(image.dtype))

    def visual_down(self) -> Tensor | None:
        """D of W_k and of W_v, float[2, R, V]; None with full projections."""
        if not hasattr(self, "visual_key_down"):
            return None
        return torch.stack([self.visual_key_down, self.visual_value_down])

    def absorb(self, dtype: torch.dtype) -> Absorbed:
        """Multiplied in fp32, given in `dtype` (fp16: in fp32); `generate` does it once, not at every token."""
        dtype = wide(dtype)
        query_up = self.query_up.view(self.key_heads, self.head_width, -1)  # [H, d, r]
        scores = self._rows("visual_key_up") @ query_up * self.head_width**-0.5
        values = self.gate[:, None, None] * self._rows("visual_value_up")
        return Absorbed(self.query_down.to(dtype), scores.flatten(0, 1).to(dtype), values.to(dtype))

    def _rows(self, up: str) -> Tensor:
        """The prompts and, below them, the projection called `up`, by head: float[H, L, d]."""
        rows = torch.cat([self.prompts, getattr(self, up).T]) if hasattr(self, up) else self.prompts
        return rows.view(len(rows), self.key_heads, self.head_width).transpose(0, 1)

    def forward(
        self,
        words: Tensor,
        visual: Tensor | None = None,
        visual_mask: Tensor | None = None,
        absorbed: Absorbed | None = None,
    ) -> Tensor:
        """The gated extra keys g E.

        Args:
            words: float[B, T, C], what the frozen k_proj receives.
            visual: float[B', 2 or 1, N, R] from `project_visual`, or None without images. Where B' is smaller than B,
                B / B' successive samples share an image: the beams of one caption.
            visual_mask: bool[B', N], False where a sample has no such visual row; None means all True.
            absorbed: of the parameters as they are, in the words' dtype; None: made anew.

        Returns:
            float[B, T, H*d], to be added to the keys before rotary embedding and cache.
        """
        batch, length, _ = words.shape
        absorbed = absorbed or self.absorb(words.dtype)
        mixed = self._inner_attention(words, visual, visual_mask, absorbed)  # [B', n*T*H, K + N]
        if visual is not None:
            own, seen = mixed.split([len(self.prompts), visual.shape[2]], dim=-1)
            mixed = torch.cat([own, _for_backward(seen) @ visual[:, -1]], dim=-1)  # [B', n*T*H, L]
        mixed = mixed.view(batch * length, self.key_heads, -1).transpose(0, 1)  # [H, B*T, L]
        extra = mixed @ absorbed.values[:, : mixed.shape[-1]]  # (3): [H, B*T, d]
        return extra.transpose(0, 1).reshape(batch, length, -1).to(words.dtype)

    def inner_attention(
        self, words: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None
    ) -> Tensor:
        """The softmax of (3): what each word token's extra key is mixed from.

        Args:
            words, visual, visual_mask: as in `forward`.

        Returns:
            float[B, H, T, K + N], over the learnable prompts and then the visual rows; each row sums to 1.
        """
        weights = self._inner_attention(words, visual, visual_mask, self.absorb(words.dtype))
        return weights.view(*words.shape[:2], self.key_heads, -1).transpose(1, 2)

    def _inner_attention(
        self, words: Tensor, visual: Tensor | None, visual_mask: Tensor | None, absorbed: Absorbed
    ) -> Tensor:
        """float[B', n*T*H, K + N], n = B / B': what shares visual rows stands in the row dimension of one product."""
        images = len(words) if visual is None else len(visual)
        dtype, count = absorbed.query.dtype, len(self.prompts)
        low = F.linear(words.to(dtype), absorbed.query)  # A T
        scores = F.linear(low, absorbed.scores).view(images, -1, absorbed.values.shape[1])  # (1)
        if visual is not None:
            own, visual_query = scores.split([count, visual.shape[3]], dim=-1)
            visual_scores = _for_backward(visual_query) @ visual[:, 0].transpose(1, 2)  # [B', n*T*H, N]
            if visual_mask is not None:
                visual_scores = visual_scores.masked_fill(~visual_mask[:, None], -torch.inf)
            scores = torch.cat([own, visual_scores], dim=-1)
        else:
            scores = scores[..., :count]
        return torch.softmax(scores, dim=-1)  # of bfloat16 it is summed in float32 and rounded once


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of the maths: float16 ends at 65,504, which a score may pass, so float32 takes its place."""
    return torch.float32 if dtype == torch.float16 else dtype


def _for_backward(columns: Tensor) -> Tensor:
    """Some columns of a matrix, in training as a copy: oneDNN else copies them transposed in the backward pass, which
    is slow. Without a backward pass the copy is what costs.
    """
    return columns.contiguous() if columns.requires_grad else columns


def _matrix(rows: int, columns: int) -> nn.Parameter:
    """A random linear map that keeps the variance of its input."""
    return nn.Parameter(torch.randn(rows, columns) * columns**-0.5)
