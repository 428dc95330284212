"""Frozen timm models as token encoders: any ViT with `forward_intermediates`, and CNN feature maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor

from excitor_mm.errors import ConfigError
from excitor_mm.vision.preprocess import Encoder, Preprocessing


class TimmEncoder(Encoder):
    """Images to tokens.

    ViT: class token and patches of the last layer after the final norm, or of each layer in `layers`.
    CNN: the positions of the last feature map and, as one more token, their mean.
    """

    def __init__(self, net: Any, preprocessing: Preprocessing, layers: list[int] | None) -> None:
        super().__init__()
        self.net, self.preprocessing, self.layers = net, preprocessing, layers
        self.width = net.num_features
        self.is_cnn = not hasattr(net, "blocks") or not hasattr(net, "patch_embed")
        if self.is_cnn and layers is not None:
            raise ConfigError("vision.layers is for ViTs; a CNN gives its last feature map: set it to null.")
        if self.is_cnn:
            self.net.to(memory_format=torch.channels_last)  # nearly twice as fast; the same but for rounding

    def parts(self, pixels: Tensor) -> list[Tensor]:
        """See `Encoder.parts`."""
        if self.is_cnn:
            cells = self.net.forward_features(pixels.contiguous(memory_format=torch.channels_last))
            return [cells, cells.flatten(2).transpose(1, 2).mean(dim=1)[:, :, None]]
        outputs = self.net.forward_intermediates(
            pixels,
            indices=_from_the_front(self.layers or [-1], len(self.net.blocks)),
            norm=True,
            output_fmt="NCHW",
            return_prefix_tokens=True,
            intermediates_only=True,
            stop_early=True,
        )
        parts = []
        for output in outputs:
            patches, prefix = output if isinstance(output, tuple) else (output, None)
            if prefix is not None:  # there is none in SigLIP, for one
                parts.append(prefix.transpose(1, 2))
            parts.append(patches)
        return parts


def _from_the_front(layers: list[int], count: int) -> list[int]:
    """Negative layer numbers counted from the front, checked."""
    if any(not -count <= layer < count for layer in layers):
        raise ConfigError(f"vision.layers is {layers}, but the encoder has {count} layers.")
    return [layer % count for layer in layers]


def load_timm(model: str, weights: str | None, layers: list[int] | None) -> TimmEncoder:
    """Build a timm encoder.

    Args:
        model: timm's model name.
        weights: None for random ones, an existing safetensors file, or a pretrained tag of timm.
        layers: see `TimmEncoder`.

    Raises:
        ConfigError: timm does not know the model, or the file does not fit it.
    """
    source = Path(weights).expanduser() if weights else None
    try:
        if source is not None and source.suffix == ".safetensors":
            net, preprocessing = _from_file(model, source)
        else:
            name = f"{model}.{weights}" if weights else model
            net = timm.create_model(name, pretrained=weights is not None, num_classes=0)
            data = timm.data.resolve_model_data_config(net)
            preprocessing = _preprocessing(data)
    except (RuntimeError, OSError, KeyError) as error:
        raise ConfigError(f"timm cannot build {model!r} with weights {weights!r}: {error}") from error
    return TimmEncoder(net, preprocessing, layers)


def _from_file(model: str, path: Path) -> tuple[Any, Preprocessing]:
    """A safetensors file; its metadata, where present, tells how images are prepared."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    net = timm.create_model(model, **{"num_classes": 0, **json.loads(metadata.get("model_args", "{}"))})
    net.load_state_dict(state)
    data: dict[str, Any] = timm.data.resolve_model_data_config(net)
    for key, parse in _METADATA.items():
        if key in metadata:
            data[key] = parse(metadata[key])
    if "image_size" in metadata:
        data["input_size"] = (3, int(metadata["image_size"]), int(metadata["image_size"]))
    return net, _preprocessing(data)


_METADATA: dict[str, Callable[[str], Any]] = {
    "mean": json.loads,
    "std": json.loads,
    "interpolation": str,
    "crop_pct": float,
}


def _preprocessing(data: dict[str, Any]) -> Preprocessing:
    return Preprocessing(
        size=data["input_size"][-1],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        resize_ratio=1 / data["crop_pct"],
    )
