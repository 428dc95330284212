"""The published files of the default parts to what transformers and timm load in a second.

Encoders become safetensors files whose metadata holds what `vision/timm_encoder.py` needs to know about
preprocessing. The heavy libraries are imported where they are used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from excitor_mm.errors import DependencyError

if TYPE_CHECKING:
    from torch import Tensor


def smollm2(gguf: Path, target: Path) -> None:
    """GGUF to a plain transformers folder in bfloat16.

    transformers reads GGUF itself (dequantising and undoing Meta's rotary order), but a model loaded that way
    refuses to be saved, so its weights move into a fresh model.

    Raises:
        DependencyError: this transformers misreads the tokenizer, as 5.17 did, so that no answer would ever end.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, __version__

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    if tokenizer.eos_token_id != settings["eos_token_id"]:
        raise DependencyError(
            f"transformers {__version__} takes token {tokenizer.eos_token_id} of {gguf.name} for its end, expected "
            f"{settings['eos_token_id']}: install the version that setup.cfg asks for."
        )
    del settings["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings)).bfloat16()
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def efficientnet_lite0(pth: Path, target: Path) -> None:
    """The backbone of EfficientNet-Lite0 under timm's names; both list their tensors in the same order.

    The weights come from TensorFlow: they want its "same" padding (uneven at stride 2) and its batch norm epsilon,
    neither of which is timm's default for this model. Without them the features are off by their own size.
    """
    import timm
    import torch

    published = torch.load(pth, map_location="cpu", weights_only=True)
    net = timm.create_model("efficientnet_lite0")
    names = net.state_dict().keys()
    net.load_state_dict(dict(zip(names, published.values(), strict=True)))  # checks every shape
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("classifier")}
    _save_encoder(
        state,
        target,
        model="efficientnet_lite0",
        mean=[127 / 255] * 3,
        std=[128 / 255] * 3,
        licence="Apache-2.0",
        pad_type="same",
        bn_eps=1e-3,
    )


def vit_small_14(onnx_file: Path, target: Path) -> None:
    """The ViT-S/14 backbone of a saliency network, ONNX to timm's `vit_small_patch14_dinov2`.

    Named initializers keep their module path. Linear weights are anonymous and transposed; the MatMul node
    that uses one carries its module path. The position grid (37x37) is resampled to 16x16 for 224 px as
    the exported graph does.
    """
    import onnx
    import torch
    import torch.nn.functional as F
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{path}.weight"] = arrays[node.input[1]].T
    width = found["layernorm.weight"].numel()
    class_position, grid = _positions(arrays, width)
    side = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, side, side, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    state = {
        "cls_token": found["embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, grid.flatten(2).transpose(1, 2)], dim=1),
        "patch_embed.proj.weight": found["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": found["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": found["layernorm.weight"],
        "norm.bias": found["layernorm.bias"],
    }
    for block in range(12):
        source, name = f"encoder.layer.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            parts = [found[f"{source}.attention.attention.{p}.{kind}"] for p in ("query", "key", "value")]
            state[f"{name}.attn.qkv.{kind}"] = torch.cat(parts)
            state[f"{name}.attn.proj.{kind}"] = found[f"{source}.attention.output.dense.{kind}"]
            for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{name}.{layer}.{kind}"] = found[f"{source}.{layer}.{kind}"]
        for scale in ("1", "2"):
            state[f"{name}.ls{scale}.gamma"] = found[f"{source}.layer_scale{scale}.lambda1"]
    _save_encoder(
        state,
        target,
        model="vit_small_patch14_dinov2",
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        licence="MIT (package), Apache-2.0 (DINOv2)",
        img_size=224,
    )


def _positions(arrays: dict[str, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """The two folded constants: class position float[1, 1, V] and patch grid float[1, n, V]."""
    constants = [a for a in arrays.values() if a.ndim == 3 and a.shape[0] == 1 and a.shape[2] == width]
    grid = max(constants, key=lambda array: array.shape[1])
    token = next(a for name, a in arrays.items() if a.shape == (1, 1, width) and not name.startswith("backbone."))
    return token, grid


def _save_encoder(
    state: dict[str, Tensor],
    target: Path,
    *,
    model: str,
    mean: list[float],
    std: list[float],
    licence: str,
    **model_args: int | float | str,
) -> None:
    from safetensors.torch import save_file

    metadata = {
        "library": "timm",
        "model": model,
        "model_args": json.dumps(model_args),
        "image_size": "224",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "interpolation": "bicubic",
        "crop_pct": "0.875",
        "licence": licence,
    }
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target, metadata=metadata)
