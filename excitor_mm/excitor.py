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

W_k and W_v are products U D of rank R. Scores and values are linear in I, so D I is computed once per
image (`project_visual`) and U meets the query and the attended sum, never the N visual rows: no tensor
of shape [B, N, C] exists.

Dimensions: B batch, T word tokens, C model width, H key heads, d head width, K learnable prompts,
N visual prompts, V their width, R rank of the visual projections, r rank of the query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Excitor(nn.Module):
    """The trainable block of one attention layer. Parameters are fp32; the maths runs in the input's dtype.

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
        if not hasattr(self, "visual_key_down"):
            return image[:, None]
        down = torch.stack([self.visual_key_down, self.visual_value_down]).to(image.dtype)
        return torch.einsum("bnv,prv->bpnr", image, down)

    def forward(self, words: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None) -> Tensor:
        """The gated extra keys g E.

        Args:
            words: float[B, T, C], what the frozen k_proj receives.
            visual: float[B, 2 or 1, N, R] from `project_visual`, or None without images.
            visual_mask: bool[B, N], False where a sample has no such visual row; None means all True.

        Returns:
            float[B, T, H*d], to be added to the keys before rotary embedding and cache.
        """
        weights, prompts = self.inner_attention(words, visual, visual_mask), self._by_head(self.prompts, words.dtype)
        extra = weights[..., : len(self.prompts)] @ prompts  # (3): [B, H, T, d]
        if visual is not None:
            value_up = self._by_head(self.visual_value_up.T, words.dtype)  # [H, R, d]
            extra = extra + (weights[..., len(self.prompts) :] @ visual[:, -1:]) @ value_up
        gated = self.gate.to(words.dtype)[:, None, None] * extra
        return gated.transpose(1, 2).flatten(2)

    def inner_attention(
        self, words: Tensor, visual: Tensor | None = None, visual_mask: Tensor | None = None
    ) -> Tensor:
        """The softmax of (3): what each word token's extra key is mixed from.

        Args:
            words, visual, visual_mask: as in `forward`.

        Returns:
            float[B, H, T, K + N], over the learnable prompts and then the visual rows; each row sums to 1.
        """
        batch, length, _ = words.shape
        dtype = words.dtype
        query = F.linear(F.linear(words, self.query_down.to(dtype)), self.query_up.to(dtype))  # (1)
        query = query.view(batch, length, self.key_heads, self.head_width).transpose(1, 2)  # [B, H, T, d]
        scores = query @ self._by_head(self.prompts, dtype).transpose(1, 2)  # [B, H, T, K]
        if visual is not None:
            key_up = self._by_head(self.visual_key_up.T, dtype)  # [H, R, d]
            absorbed = query @ key_up.transpose(1, 2)  # Q_e U: [B, H, T, R]
            visual_scores = absorbed @ visual[:, :1].transpose(2, 3)  # [B, H, T, N]
            if visual_mask is not None:
                visual_scores = visual_scores.masked_fill(~visual_mask[:, None, None], -torch.inf)
            scores = torch.cat([scores, visual_scores], dim=-1)
        exact = torch.promote_types(dtype, torch.float32)  # a softmax in half precision loses small weights
        return torch.softmax(scores.to(exact) * self.head_width**-0.5, dim=-1).to(dtype)

    def _by_head(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """float[X, H*d] -> [H, X, d] in `dtype`."""
        return matrix.to(dtype).reshape(len(matrix), self.key_heads, self.head_width).transpose(0, 1)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    """A random linear map that keeps the variance of its input."""
    return nn.Parameter(torch.randn(rows, columns) * columns**-0.5)
