"""One or several frozen encoders as one source of visual prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from excitor_mm.config import EncoderConfig
from excitor_mm.defaults import PARTS, default_path
from excitor_mm.vision.preprocess import Encoder


class VisionTower(nn.Module):
    """Frozen encoders, in eval mode and without grad, whose tokens stand in one sequence.

    Each token is standardised (layer norm without parameters), because encoders differ in scale by a factor
    of 40. Encoders of different widths keep to columns of their own, which gives each its own W_k and W_v.

    Attributes:
        width: V, the sum of the encoders' widths.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.encoders: Sequence[Encoder] = nn.ModuleList(encoders)  # type: ignore[assignment]
        self.width: int = sum(encoder.width for encoder in encoders)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VisionTower:
        """Stay in eval mode: the encoders are frozen, batch norm statistics and dropout included."""
        return super().train(False)

    def transform(
        self, crop_scale: tuple[float, float] | None = None, flip: float = 0.0
    ) -> Callable[[Image.Image], list[Tensor]]:
        """RGB image -> one uint8[3, S, S] for each encoder; see `Preprocessing.transform`."""
        return _Transforms([e.preprocessing.transform(crop_scale, flip) for e in self.encoders])

    def normalise(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """One uint8[..., 3, S, S] for each encoder -> float32 of the same shapes; floats are normalised already."""
        return [
            image if image.is_floating_point() else encoder.preprocessing.normalise(image)
            for encoder, image in zip(self.encoders, pixels, strict=True)
        ]

    def enough(self, crop_scale: tuple[float, float]) -> int:
        """The shorter side in pixels above which no random crop of a photo has to be enlarged.

        A crop keeps at least `crop_scale[0]` of the area and is at most 4 / 3 as long as wide, as torchvision draws.
        """
        return max(math.ceil(e.preprocessing.size / math.sqrt(0.75 * crop_scale[0])) for e in self.encoders)

    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """What `normalise` takes, one [B, 3, S, S] for each encoder -> its standardised tokens float[B, N, width]."""
        found = []
        for encoder, image in zip(self.encoders, self.normalise(pixels), strict=True):
            tokens = encoder(image.to(next(encoder.parameters()).dtype))
            found.append(F.layer_norm(tokens.float(), tokens.shape[-1:]))
        return found

    def tokens(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """What `encode` takes, or what it gave (cached tokens, of any precision) -> float32[B, N, width] each."""
        found = pixels if all(part.ndim == 3 for part in pixels) else self.encode(pixels)
        return [part.float() for part in found]

    def forward(self, pixels: Sequence[Tensor]) -> Tensor:
        """What `tokens` takes -> visual prompts float32[B, N, V]."""
        return side_by_side(self.tokens(pixels))


def side_by_side(tokens: Sequence[Tensor]) -> Tensor:
    """One sequence of the tokens of several encoders, float[B, N_i, V_i] -> float[B, sum of N_i, sum of V_i].

    Each encoder keeps to columns of its own; the others are zero.
    """
    width, left, parts = sum(part.shape[-1] for part in tokens), 0, []
    for part in tokens:
        parts.append(F.pad(part, (left, width - left - part.shape[-1])))
        left += part.shape[-1]
    return torch.cat(parts, dim=1)


class _Transforms:
    """A list of transforms applied to one image; a class, so that worker processes can pickle it."""

    def __init__(self, transforms: Sequence[Callable[[Image.Image], Tensor]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


def load_tower(configs: Sequence[EncoderConfig]) -> VisionTower:
    """Build the encoders of a run.

    Raises:
        ConfigError: a library cannot build what is asked for.
        DependencyError: default weights that were not fetched yet.
    """
    return VisionTower([_load_encoder(config) for config in configs])


def _load_encoder(config: EncoderConfig) -> Encoder:
    weights = config.weights
    if weights in PARTS:
        weights = str(default_path(weights))
    elif weights and Path(weights).expanduser().exists():
        weights = str(Path(weights).expanduser().resolve())
    if config.library == "timm":
        from excitor_mm.vision.timm_encoder import load_timm

        return load_timm(config.model, weights, config.layers)
    from excitor_mm.vision.open_clip_encoder import load_open_clip

    return load_open_clip(config.model, weights, config.layers)
