"""From a decoded photo to the pixels an encoder was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2


@dataclass(frozen=True)
class Preprocessing:
    """Read from the encoder, never configured."""

    size: int
    """S, side of the square input in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    """"bicubic" or "bilinear"."""
    resize_ratio: float = 1.0
    """Shorter side after resizing, as a multiple of `size`, before the centre crop."""

    def transform(
        self, crop_scale: tuple[float, float] | None = None, flip: float = 0.0
    ) -> Callable[[Image.Image], Tensor]:
        """RGB image -> uint8[3, S, S]; what a reading process hands on is a fourth of floats.

        Args:
            crop_scale: for training, a random resized crop with this range of area; None for the
                encoder's own resize and centre crop.
            flip: probability of a horizontal flip.
        """
        mode = v2.InterpolationMode(self.interpolation)
        steps: list[Callable]
        if crop_scale is not None:
            steps = [v2.RandomResizedCrop(self.size, scale=crop_scale, interpolation=mode, antialias=True)]
        else:
            steps = [v2.Resize(self.shorter, interpolation=mode, antialias=True), v2.CenterCrop(self.size)]
        if flip > 0:
            steps.append(v2.RandomHorizontalFlip(flip))
        return v2.Compose([*steps, v2.PILToTensor()])

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8[..., 3, S, S] -> float32[..., 3, S, S] as the encoder was trained on."""
        floats = pixels.float() / 255
        mean, std = floats.new_tensor(self.mean), floats.new_tensor(self.std)
        return floats.sub_(mean[:, None, None]).div_(std[:, None, None])

    @property
    def shorter(self) -> int:
        """Shorter side after resizing, in pixels."""
        return round(self.size * self.resize_ratio)

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Which part of a photo the encoder sees: the inverse of resize and centre crop.

        Args:
            width, height: of the photo, in pixels.

        Returns:
            left, top, right, bottom in pixels of the photo; fractions of a pixel count.
        """
        resized = [int(self.shorter * side / min(width, height)) for side in (width, height)]  # as torchvision does
        starts = [round((side - self.size) / 2) for side in resized]
        across, down = width / resized[0], height / resized[1]
        return (
            starts[0] * across,
            starts[1] * down,
            (starts[0] + self.size) * across,
            (starts[1] + self.size) * down,
        )


class TokenBlock(NamedTuple):
    """Neighbouring tokens of one encoder that come from one place of it."""

    tokens: int
    grid: tuple[int, int] | None
    """Rows and columns of equal cells that fill the input square, row by row; None: tokens of the whole picture
    (class token, registers, a mean)."""


class Encoder(nn.Module):
    """What every frozen encoder has: float[B, 3, S, S] normalised -> float[B, N, V].

    Attributes:
        width: V, the width of a token.
        preprocessing: size, mean, std and interpolation the weights were trained with.
    """

    width: int
    preprocessing: Preprocessing

    def layout(self) -> list[TokenBlock]:
        """Where the N tokens come from, in their order; found by encoding a black square."""
        weight = next(self.parameters())
        side = self.preprocessing.size
        with torch.no_grad():
            parts = self.parts(torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device))
        return [TokenBlock(p.shape[2:].numel(), (p.shape[2], p.shape[3]) if p.ndim == 4 else None) for p in parts]

    def parts(self, pixels: Tensor) -> list[Tensor]:
        """The tokens before they are joined.

        Args:
            pixels: float[B, 3, S, S], normalised.

        Returns:
            float[B, V, rows, columns] for a grid, float[B, V, n] for tokens of the whole picture.
        """
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """float[B, 3, S, S] normalised -> float[B, N, V]."""
        return torch.cat([part.flatten(2) for part in self.parts(pixels)], dim=2).transpose(1, 2)
