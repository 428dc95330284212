"""LLaMA with Excitor blocks: the only file that touches transformers' modelling internals.

A frozen `LlamaForCausalLM` is loaded as usual; `add_excitors` then puts an `Excitor` beside `k_proj` in
the topmost layers. Nothing upstream is copied: attention kernels, masks, caches, beam search, torch.compile
and gradient checkpointing are transformers' own.

`visual_prompts` and `visual_mask` are named parameters of `forward`, so that `generate` accepts them and hands
them to every decoding step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention

from excitor_mm.config import ExcitorConfig
from excitor_mm.errors import ConfigError
from excitor_mm.excitor import Absorbed, Excitor, wide
from excitor_mm.switches import is_off
from excitor_mm.vision.tower import side_by_side

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""Upstream's name for the keys and values of earlier tokens; it changed within transformers 5."""


VisualPrompts = Tensor | Sequence[Tensor] | None
"""Of the L topmost layers: float[B, L, ...], or unbound one float[B, ...] for each."""


class ExcitedKeyProjection(nn.Module):
    """Stands where `k_proj` stood: base(x) + excitor(x, visual prompts)."""

    def __init__(self, base: nn.Module, excitor: Excitor) -> None:
        super().__init__()
        self.base, self.excitor = base, excitor
        self.visual: tuple[Tensor | None, Tensor | None] = (None, None)
        self.absorbed: Absorbed | None = None

    def forward(self, words: Tensor) -> Tensor:
        """float[B, T, C] -> float[B, T, H*d]."""
        keys = self.base(words)
        if is_off("excitor"):
            return keys
        return keys + self.excitor(words, *self.visual, self.absorbed).to(keys.dtype)


class ExcitorAttention(LlamaAttention):
    """A LLaMA attention layer whose keys may be excited; its linears are those of the layer it replaces."""

    @classmethod
    def adopt(cls, attention: LlamaAttention, excitor: Excitor | None) -> ExcitorAttention:
        """Take over a frozen layer's modules; without `excitor` only the new keywords are accepted."""
        with torch.device("meta"):  # its own linears are replaced at once
            adopted = cls(attention.config, attention.layer_idx)
        for name, child in attention.named_children():
            setattr(adopted, name, child)
        if excitor is not None:
            adopted.k_proj = ExcitedKeyProjection(attention.k_proj, excitor)  # type: ignore[assignment]
        return adopted.train(attention.training)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        *args: Any,
        visual_prompts: VisualPrompts = None,
        visual_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As upstream; this layer takes its own part of `visual_prompts`, see `layer_part`."""
        if not isinstance(self.k_proj, ExcitedKeyProjection):
            return super().forward(hidden_states, *args, **kwargs)
        # Upstream calls k_proj(hidden_states) only. The visual rows wait on the module during this one
        # call, never between calls, so recomputation under checkpointing sees the same rows.
        self.k_proj.visual = (self.own_part(visual_prompts), visual_mask)
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self.k_proj.visual = (None, None)

    def own_part(self, visual_prompts: VisualPrompts) -> Tensor | None:
        """This excited layer's float[B, 2 or 1, N, R]."""
        return layer_part(visual_prompts, self.layer_idx, self.config.num_hidden_layers)

    def weights(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **visual: Any) -> Tensor:
        """The softmax of (5), which fused kernels keep to themselves: float[B, query heads, T, T].

        Args:
            hidden_states, position_embeddings: what upstream hands to this layer, without padding.
            visual: `visual_prompts` and `visual_mask` as in `forward`.
        """
        twin = copy.copy(self)  # the same modules under another kernel
        twin.config = copy.copy(self.config)
        twin.config._attn_implementation = "eager"
        length = hidden_states.shape[1]
        causal = hidden_states.new_full((length, length), -torch.inf).triu(1)[None, None]
        weights = twin.forward(hidden_states, position_embeddings, attention_mask=causal, **visual)[1]
        assert weights is not None  # the eager kernel always gives them
        return weights


class ExcitorLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` that accepts visual prompts. Load it with `from_pretrained`, then `add_excitors`."""

    def forward(
        self,
        *args: Any,
        visual_prompts: Tensor | None = None,
        visual_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As upstream, with `visual_prompts` from `project_visual` and `visual_mask`: bool[B, N].

        `logits_to_keep` is named because upstream's `generate` looks for the name: else a prompt gets all its logits.
        """
        kwargs |= {"visual_prompts": visual_prompts, "visual_mask": visual_mask, "logits_to_keep": logits_to_keep}
        return super().forward(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream. The parameters stand still meanwhile, so each block absorbs them once, not at every token.

        With several threads in it the first to end lets the others absorb anew: slower, and nothing else.
        """
        excited = [m for m in self.modules() if isinstance(m, ExcitedKeyProjection)]
        with torch.no_grad():
            for projection in excited:
                projection.absorbed = projection.excitor.absorb(self.model.norm.weight.dtype)
        try:
            return super().generate(*args, **kwargs)
        finally:
            for projection in excited:
                projection.absorbed = None

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream, which repeats every tensor for each beam, but for the visual prompts: beams share theirs."""
        names = [name for name in ("visual_prompts", "visual_mask") if name in kwargs]
        shared: dict[str, Any] = {name: kwargs.pop(name) for name in names}
        ids, expanded = super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        expanded.update(shared)
        return ids, expanded

    def _prefill(
        self, input_ids: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As upstream, which reads a prompt anew for each of its beams or samples, but for a growing cache."""
        asked = generation_config
        copies, cache = max(asked.num_beams, asked.num_return_sequences), model_kwargs.get(CACHE)
        traced = asked.output_attentions or asked.output_hidden_states  # those of the prompt have a row for each copy
        if copies == 1 or traced or type(cache) is not DynamicCache or cache.get_seq_length():
            return super()._prefill(input_ids, asked, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        once = dict(model_kwargs)
        for name in ("attention_mask", "position_ids", "inputs_embeds"):
            if once.get(name) is not None:
                once[name] = once[name][::copies]
        read = super()._prefill(input_ids[::copies], asked, once, *args, **kwargs)  # type: ignore[misc]
        cache.batch_repeat_interleave(copies)
        read.logits = read.logits.repeat_interleave(copies, dim=0)
        return read

    def add_excitors(self, config: ExcitorConfig, visual_width: int | None) -> None:
        """Freeze this model and put trainable Excitor blocks into its topmost `config.layers` layers.

        Args:
            config: sizes and first values of the blocks.
            visual_width: V, the width of the visual prompts; None for text only.

        Raises:
            ConfigError: more layers asked for than there are.
        """
        layers = self.model.layers
        count = config.layers if config.layers is not None else max(1, len(layers) - 2)
        if not 0 <= count <= len(layers):
            raise ConfigError(
                f"excitor.layers is {count}, but the language model has {len(layers)} layers: "
                f"choose 1 to {len(layers)}, or 0 for LoRA alone."
            )
        key_heads = self.config.num_key_value_heads or self.config.num_attention_heads
        self.requires_grad_(False)
        for index, layer in enumerate(layers):
            excitor = None
            if index >= len(layers) - count:
                excitor = Excitor(
                    self.config.hidden_size,
                    key_heads,
                    layer.self_attn.head_dim,
                    prompts=config.prompts,
                    rank=config.rank,
                    visual_width=visual_width,
                    visual_rank=config.visual_rank,
                    gate_start=config.gate_start,
                    prompt_std=config.prompt_std,
                ).to(layer.input_layernorm.weight.device)
            layer.self_attn = ExcitorAttention.adopt(layer.self_attn, excitor)

    def excitors(self) -> dict[int, Excitor]:
        """Layer index -> Excitor, lowest layer first."""
        return {
            index: layer.self_attn.k_proj.excitor
            for index, layer in enumerate(self.model.layers)
            if isinstance(layer.self_attn.k_proj, ExcitedKeyProjection)
        }

    def excitor_tensors(self) -> dict[str, nn.Parameter]:
        """The Excitors' parameters by their name in the adapter, e.g. `layers.2.gate`."""
        return {
            f"layers.{index}.{name}": parameter
            for index, excitor in self.excitors().items()
            for name, parameter in excitor.named_parameters()
        }

    def project_visual(self, *images: Tensor) -> Tensor:
        """Visual prompts as the layers take them, computed once per image.

        Args:
            images: float[B, N_i, V_i], the tokens of each encoder; N and V are their sums.

        Returns:
            float[B, L, 2, N, R]; with full projections float[B, L, 1, N, V] without a copy for each layer.
        """
        images = tuple(image.to(wide(self.model.norm.weight.dtype)) for image in images)
        blocks = list(self.excitors().values())
        downs = [down for block in blocks if (down := block.visual_down()) is not None]
        if not downs:  # full projections: every layer reads the image itself
            return side_by_side(images)[:, None, None].expand(-1, len(blocks), -1, -1, -1)
        together = torch.stack(downs).to(images[0].dtype)  # one product for all layers: [L, 2, R, V]
        columns = together.flatten(0, 2).split([image.shape[-1] for image in images], dim=-1)
        products = [F.linear(image, own) for image, own in zip(images, columns, strict=True)]
        rows = torch.cat(products, dim=1).unflatten(-1, together.shape[:3])  # [B, N, L, 2, R]
        return rows.permute(0, 2, 3, 1, 4).contiguous()


def layer_part(visual_prompts: VisualPrompts, layer: int, layers: int) -> Tensor | None:
    """What one of the topmost of `layers` layers takes of the visual prompts: float[B, ...].

    Unbound ones serve training: their gradients are stacked once, where every slice of one tensor would add a
    gradient of the whole tensor's size.
    """
    if isinstance(visual_prompts, Tensor):
        return visual_prompts[:, layer - layers + visual_prompts.shape[1]]
    return None if visual_prompts is None else visual_prompts[layer - layers + len(visual_prompts)]


def take_rows(
    images: tuple[Tensor | None, Tensor | None], rows: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Visual prompts and mask of the image that each row is about; `rows` is int64[B], None: as they are."""
    visual, mask = (tensor if tensor is None or rows is None else tensor[rows.to(tensor.device)] for tensor in images)
    return visual, mask
