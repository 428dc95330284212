"""The image as tokens in the sequence, before the text: ClipCap's and LLaVA's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from baselines.base import Baseline, Parts
from excitor_mm.branches import PADDING, sight
from excitor_mm.config import DecodingConfig
from excitor_mm.language import answer_losses, generate_options


class PrefixModel(Baseline):
    """Frozen language model behind a trainable map of visual tokens to word embeddings.

    Args:
        parts: the frozen ones.
        projector: float[B, N, V] -> float[B, P, C].
    """

    def __init__(self, parts: Parts, projector: nn.Module) -> None:
        super().__init__(*parts)
        self.projector = projector

    def prefixed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Sequence[Tensor],
        image_mask: Tensor | None,
        image_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings float[B, P + T, C] and their mask; a sample without an image has its P tokens masked."""
        tokens = self.tower([pixels.to(self.device) for pixels in pixel_values])
        prefix = self.projector(tokens).to(self.language.dtype)
        words = self.language.get_input_embeddings()(input_ids.to(self.device))
        seen = torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device)
        if image_mask is not None:
            seen = seen * image_mask.to(self.device)[:, None]
        if image_rows is not None:
            prefix, seen = prefix[image_rows], seen[image_rows]
        return torch.cat([prefix, words], dim=1), torch.cat([seen, attention_mask.to(self.device)], dim=1)

    def answer_losses(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        *,
        branches: Tensor | None = None,
        image_rows: Tensor | None = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        **images: Any,
    ) -> tuple[Tensor, Tensor]:
        """See `ExcitorModel.answer_losses`."""
        embeddings, mask = self.prefixed(input_ids, attention_mask, **images, image_rows=image_rows)
        if branches is not None:  # the image is a part of the prompt; a masked one is nobody's
            image = torch.where(mask[:, : -input_ids.shape[1]] == 1, 0, PADDING - 1)
            branches = torch.cat([image, branches.to(self.device)], dim=1)
        seen = sight(mask, branches, self.language.dtype)
        hidden = self.language.model(inputs_embeds=embeddings, **seen, use_cache=False).last_hidden_state
        words = hidden[:, -input_ids.shape[1] :]
        return answer_losses(self.language.lm_head, words, labels.to(self.device), label_smoothing, temperature)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Sequence[Tensor],
        image_mask: Tensor | None = None,
        *,
        image_rows: Tensor | None = None,
        decoding: DecodingConfig | None = None,
        **options: Any,
    ) -> Tensor:
        """See `ExcitorModel.generate`."""
        embeddings, mask = self.prefixed(input_ids, attention_mask, pixel_values, image_mask, image_rows)
        chosen = {**generate_options(decoding or self.config.decoding), **options}
        return self.language.generate(inputs_embeds=embeddings, attention_mask=mask, **chosen)


def llava_projector(width: int, model_width: int, hidden: int) -> LlavaMultiModalProjector:
    """transformers' own two-layer projector of every visual token: float[B, N, V] -> float[B, N, C].

    `hidden` is the width between its layers, which upstream is always C.
    """
    vision, text = CLIPVisionConfig(hidden_size=width, num_attention_heads=1), LlamaConfig(hidden_size=model_width)
    projector = LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text))
    projector.linear_1, projector.linear_2 = nn.Linear(width, hidden), nn.Linear(hidden, model_width)
    return projector


class ClipCapMapper(nn.Module):
    """ClipCap's MLP (Mokady et al., 2021, arXiv 2111.09734): the mean token to P tokens, float[B, P, C]."""

    def __init__(self, width: int, model_width: int, tokens: int, hidden: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, tokens * model_width))

    def forward(self, image: Tensor) -> Tensor:
        """float[B, N, V] -> float[B, P, C]."""
        return self.layers(image.mean(dim=1)).unflatten(-1, (self.tokens, -1))
