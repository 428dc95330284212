"""LLaMA-Adapter (Zhang et al., 2023, arXiv 2303.16199): zero-gated prompts as extra keys and values.

In the topmost layers K learnable prompts, to each of which the projected image is added, pass through the frozen
k_proj and v_proj. Their attention has a softmax of its own, and is added to the layer's with tanh(gate), one gate
a head, 0 at first:

    out = softmax(Q K^T) V + tanh(gate) softmax(Q K_p^T) V_p,    K_p, V_p = W_k, W_v of (prompts + image)

As published, Q carries its rotary position and K_p none. K_p and V_p are made once for all decoding steps and beams,
and travel as `visual_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from baselines.base import Baseline, Parts
from excitor_mm.llama import VisualPrompts, layer_part
from excitor_mm.switches import is_off


class LlamaAdapterModel(Baseline):
    """See above.

    Args:
        parts: the frozen ones.
        layers: number of topmost layers with prompts.
        prompts: K.
    """

    def __init__(self, parts: Parts, layers: int, prompts: int) -> None:
        super().__init__(*parts)
        width = self.language.config.hidden_size
        self.prompts = nn.Parameter(torch.randn(layers, prompts, width))
        self.image = nn.Sequential(nn.Linear(self.tower.width, width), nn.LayerNorm(width))
        for layer in self.language.model.layers[-layers:]:
            layer.self_attn.adapter_gate = nn.Parameter(torch.zeros(self.language.config.num_attention_heads))
        self.language.set_attn_implementation("llama_adapter")

    def visual_prompts(
        self, pixel_values: Sequence[Tensor], image_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """K_p and V_p of every adapted layer: float[B, L, 2, key heads, K, d]; nothing is masked.

        Where there is no image the prompts act alone.
        """
        if image_mask is not None and not image_mask.any():
            image = torch.zeros(len(image_mask), self.prompts.shape[-1], device=self.device)
        else:
            image = self.image(self.tower([pixels.to(self.device) for pixels in pixel_values]).mean(dim=1))  # [B, C]
            image = image if image_mask is None else image * image_mask.to(self.device)[:, None]
        rows = []
        for prompts, layer in zip(self.prompts, self._adapted_layers(), strict=True):
            adapted = (prompts + image[:, None]).to(self.language.dtype)  # [B, K, C]
            both = torch.stack([layer.k_proj(adapted), layer.v_proj(adapted)], dim=1)  # [B, 2, K, heads*d]
            rows.append(both.unflatten(-1, (-1, layer.head_dim)).transpose(2, 3))
        return torch.stack(rows, dim=1), None

    def _adapted_layers(self) -> list[Any]:
        return [layer.self_attn for layer in self.language.model.layers if hasattr(layer.self_attn, "adapter_gate")]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    visual_prompts: VisualPrompts = None,
    visual_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention, and the prompts' beside it: float[B, T, heads, d]."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if visual_prompts is None or not hasattr(module, "adapter_gate") or is_off("excitor"):
        return output, None
    own = layer_part(visual_prompts, module.layer_idx, module.config.num_hidden_layers)
    assert own is not None
    keys, values = own.repeat_interleave(len(query) // len(own), dim=0).unbind(1)  # a row for each beam
    added = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True).transpose(1, 2)
    return output + torch.tanh(module.adapter_gate).to(added.dtype)[:, None] * added, None


AttentionInterface.register("llama_adapter", _attention)
AttentionMaskInterface.register("llama_adapter", sdpa_mask)  # without it the causal mask would be lost
