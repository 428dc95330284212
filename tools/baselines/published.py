"""BLIP-2's and GIT's way to show a picture, by transformers' own classes with random weights: for measuring speed.

blip2   a Q-Former of half the language model's depth and of its width turns all visual tokens into 32 tokens before
        the text (Li et al., 2023, arXiv 2301.12597)
git     one decoder for image and text, all visual tokens in its sequence (Wang et al., 2022, arXiv 2205.14100), of
        the language model's depth, width and number of parameters; it takes the language model's place
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, GitConfig, GitForCausalLM

from baselines.base import Baseline, Parts
from excitor_mm.config import DecodingConfig
from excitor_mm.language import generate_options

QUERIES = 32  # BLIP-2's


class QFormerProjector(nn.Module):
    """float[B, N, V] -> float[B, 32, C]."""

    def __init__(self, width: int, shape: Any) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=shape.hidden_size,
            num_hidden_layers=max(1, shape.num_hidden_layers // 2),
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=4 * shape.hidden_size,
            encoder_hidden_size=width,
            use_qformer_text_input=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(torch.randn(1, QUERIES, shape.hidden_size) * 0.02)
        self.qformer = Blip2QFormerModel(config)
        self.projection = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        queries = self.queries.expand(len(image), -1, -1)
        return self.projection(self.qformer(queries, encoder_hidden_states=image).last_hidden_state)


class GitSide(Baseline):
    """Writes captions and nothing else."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(*parts)
        shape = parts.language.config
        config = GitConfig(
            vision_config={"hidden_size": self.tower.width, "num_hidden_layers": 0, "num_attention_heads": 1},
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=3 * shape.intermediate_size // 2,  # two matrices, where LLaMA has three
            bos_token_id=shape.bos_token_id,
            eos_token_id=shape.eos_token_id,
            tie_word_embeddings=True,
        )
        git: Any = GitForCausalLM(config)
        git.to(parts.language.dtype)
        git.generation_config = parts.language.generation_config
        git.git.image_encoder = _Given()
        self.language = git
        self.reading = [layer.attention.self for layer in git.git.encoder.layer]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Sequence[Tensor],
        image_mask: Tensor | None = None,
        *,
        decoding: DecodingConfig | None = None,
        **options: Any,
    ) -> Tensor:
        """See `ExcitorModel.generate`; every row has an image."""
        tokens = self.tower([pixels.to(self.device) for pixels in pixel_values]).to(self.language.dtype)
        for attention in self.reading:
            attention.image_patch_tokens = tokens.shape[1]
        ids = self.language.generate(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            pixel_values=tokens[..., None],
            **{**generate_options(decoding or self.config.decoding), **options},
        )
        return ids[:, input_ids.shape[1] :]


class _Given(nn.Module):
    """Stands where GIT's own encoder stood: the visual tokens are there already."""

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """float[B, N, V, 1], of the rank that GIT expects of pictures."""
        return SimpleNamespace(last_hidden_state=pixel_values[..., 0])
