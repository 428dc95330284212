"""Every kind of encoder gives tokens, and takes its preprocessing from itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from excitor_mm.config import EncoderConfig
from excitor_mm.errors import ConfigError, DependencyError
from excitor_mm.vision.tower import load_tower


def tokens(config: EncoderConfig, count: int = 2) -> torch.Tensor:
    tower = load_tower([config])
    size = tower.encoders[0].preprocessing.size
    return tower([torch.randn(count, 3, size, size)])


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (EncoderConfig("timm", "test_vit", None), (2, 101, 64)),
        (EncoderConfig("timm", "test_vit", None, [-2, -1]), (2, 202, 64)),
        (EncoderConfig("timm", "test_efficientnet", None), (2, 26, 256)),
        (EncoderConfig("open_clip", "ViT-B-32", None), (2, 50, 768)),
        (EncoderConfig("open_clip", "ViT-B-16-SigLIP", None), (2, 196, 768)),
    ],
)
def test_shapes(config: EncoderConfig, shape: tuple[int, ...]) -> None:
    assert tokens(config).shape == shape


def test_last_layer_is_the_encoders_own_output() -> None:
    tower = load_tower([EncoderConfig("timm", "test_vit", None)])
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = tower.encoders[0].net.forward_features(pixels)
    torch.testing.assert_close(tower.encoders[0](pixels), expected)


def test_encoders_are_frozen_and_stay_in_eval_mode() -> None:
    tower = load_tower([EncoderConfig("timm", "test_efficientnet", None)]).train()
    assert not any(module.training for module in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    assert not tower([torch.randn(1, 3, 160, 160)]).requires_grad


def test_encoders_of_different_width_keep_to_their_own_columns() -> None:
    tower = load_tower([EncoderConfig("timm", "test_vit", None), EncoderConfig("timm", "test_efficientnet", None)])
    joined = tower([torch.randn(2, 3, 160, 160), torch.randn(2, 3, 160, 160)])
    assert joined.shape == (2, 101 + 26, 64 + 256)
    assert not joined[:, :101, 64:].any()
    assert not joined[:, 101:, :64].any()
    assert (joined[:, :101, :64].std(dim=-1) - 1).abs().max() < 0.1


def test_preprocessing_comes_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]", "interpolation": "bilinear", "image_size": "160"}
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path, metadata=metadata)
    tower = load_tower([EncoderConfig("timm", "test_vit", str(path))])
    (pixels,) = tower.transform()(Image.new("RGB", (300, 200), "black"))
    assert pixels.shape == (3, 160, 160)
    torch.testing.assert_close(pixels[:, 0, 0], -torch.tensor([0.1, 0.2, 0.3]))


def test_open_clip_preprocessing_equals_its_own() -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    tower = load_tower([EncoderConfig("open_clip", "ViT-B-32", None)])
    own = image_transform_v2(PreprocessCfg(**tower.encoders[0].visual.preprocess_cfg), is_train=False)
    image = Image.radial_gradient("L").convert("RGB").resize((300, 260))
    difference = (tower.transform()(image)[0] - own(image)).abs()
    assert difference.max() < 0.05  # tensor and PIL resizing round differently


def test_unknown_models_and_misfit_files_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("timm", "open_clip"):
        with pytest.raises(ConfigError, match="cannot build 'no_such_model'"):
            load_tower([EncoderConfig(library, "no_such_model", None)])
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"model_args": json.dumps({})})
    with pytest.raises(ConfigError, match="cannot build 'test_vit'"):
        load_tower([EncoderConfig("timm", "test_vit", str(tmp_path / "x.safetensors"))])
    with pytest.raises(ConfigError, match="for ViTs"):
        load_tower([EncoderConfig("timm", "test_efficientnet", None, [-1])])
    with pytest.raises(ConfigError, match="12 layers|6 layers"):
        load_tower([EncoderConfig("timm", "test_vit", None, [-30])])([torch.zeros(1, 3, 160, 160)])
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    with pytest.raises(DependencyError, match="fetch-defaults"):
        load_tower([EncoderConfig()])
