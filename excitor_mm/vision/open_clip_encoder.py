"""Frozen open_clip image towers as token encoders: every tower with patch tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from excitor_mm.errors import ConfigError
from excitor_mm.vision.preprocess import Encoder, Preprocessing


class OpenClipEncoder(Encoder):
    """Images to the tokens of a CLIP or SigLIP tower: prefix tokens and patches, before the text projection."""

    def __init__(self, visual: Any, layers: list[int] | None) -> None:
        super().__init__()
        self.visual, self.layers = visual, layers or [-1]
        config: dict[str, Any] = visual.preprocess_cfg
        side = config["size"] if isinstance(config["size"], int) else config["size"][-1]
        self.preprocessing = Preprocessing(side, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
        with torch.no_grad():
            first = next(visual.parameters())
            shape = self(torch.zeros(1, 3, side, side, dtype=first.dtype, device=first.device)).shape
        self.width = shape[-1]

    def parts(self, pixels: Tensor) -> list[Tensor]:
        """See `Encoder.parts`."""
        found = self.visual.forward_intermediates(
            pixels,
            indices=self.layers,
            normalize_intermediates=True,
            intermediates_only=True,
            stop_early=True,
            output_fmt="NCHW",
            output_extra_tokens=True,
        )
        patches = found["image_intermediates"]
        prefixes = found.get("image_intermediates_prefix")
        if not prefixes:
            return list(patches)
        return [
            part for prefix, grid in zip(prefixes, patches, strict=True) for part in (prefix.transpose(1, 2), grid)
        ]


def load_open_clip(model: str, weights: str | None, layers: list[int] | None) -> OpenClipEncoder:
    """Build an open_clip tower.

    Args:
        model: open_clip's model name, e.g. ViT-L-14-336, or hf-hub:<id>.
        weights: None for random ones, a local file, or a pretrained tag such as openai.
        layers: counted as in Python lists; None: the last one.

    Raises:
        ConfigError: open_clip does not know the model or the tag, or the tower gives no patch tokens.
    """
    source = Path(weights).expanduser() if weights else None
    try:
        clip = open_clip.create_model(model, pretrained=str(source) if source and source.exists() else weights)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"open_clip cannot build {model!r} with weights {weights!r}: {error}") from error
    if not hasattr(clip.visual, "forward_intermediates"):
        raise ConfigError(f"The open_clip tower of {model!r} gives no patch tokens: choose a ViT.")
    return OpenClipEncoder(clip.visual, layers)
