"""From a decoded photo to the pixels an encoder was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        """RGB image -> float[3, S, S].

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
            shorter = round(self.size * self.resize_ratio)
            steps = [v2.Resize(shorter, interpolation=mode, antialias=True), v2.CenterCrop(self.size)]
        if flip > 0:
            steps.append(v2.RandomHorizontalFlip(flip))
        return v2.Compose([*steps, v2.PILToTensor(), _Scale(), v2.Normalize(list(self.mean), list(self.std))])


class Encoder(nn.Module):
    """What every frozen encoder has: float[B, 3, S, S] normalised -> float[B, N, V].

    Attributes:
        width: V, the width of a token.
        preprocessing: size, mean, std and interpolation the weights were trained with.
    """

    width: int
    preprocessing: Preprocessing


class _Scale:
    """uint8 0..255 -> float 0..1; a class, so that worker processes can pickle it."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float() / 255
