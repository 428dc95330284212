"""Every kind of encoder gives tokens, and takes its preprocessing from itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import v2

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


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (EncoderConfig("timm", "test_vit", None), [(1, None), (100, (10, 10))]),
        (EncoderConfig("timm", "test_vit", None, [-2, -1]), [(1, None), (100, (10, 10))] * 2),
        (EncoderConfig("timm", "test_efficientnet", None), [(25, (5, 5)), (1, None)]),
        (EncoderConfig("open_clip", "ViT-B-32", None), [(1, None), (49, (7, 7))]),
    ],
)
def test_encoders_say_where_their_tokens_come_from(config: EncoderConfig, blocks: list[object]) -> None:
    assert load_tower([config]).encoders[0].layout() == blocks


def test_a_vit_without_a_class_token(tmp_path: Path) -> None:
    path, plain = tmp_path / "x.safetensors", {"class_token": False, "global_pool": "avg"}
    net = timm.create_model("test_vit", num_classes=0, **plain)
    save_file(net.state_dict(), path, metadata={"model_args": json.dumps(plain)})
    tower = load_tower([EncoderConfig("timm", "test_vit", str(path))])
    assert tower.encoders[0].layout() == [(100, (10, 10))]
    assert tower([torch.randn(2, 3, 160, 160)]).shape == (2, 100, 64)


@pytest.mark.parametrize("size", [(160, 160), (300, 200), (200, 301), (101, 640), (57, 33)])
@pytest.mark.parametrize("crop_pct", ["1.0", "0.875"])
def test_the_seen_box_is_what_the_transform_sees(size: tuple[int, int], crop_pct: str, tmp_path: Path) -> None:
    """A photo whose red is x and whose green is y: each corner of the crop reads off where it comes from."""
    path = tmp_path / "x.safetensors"
    metadata = {"mean": "[0, 0, 0]", "std": "[1, 1, 1]", "crop_pct": crop_pct, "interpolation": "bilinear"}
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path, metadata=metadata)
    tower = load_tower([EncoderConfig("timm", "test_vit", str(path))])
    across = torch.arange(size[0]).expand(size[1], -1) + 0.5
    down = (torch.arange(size[1])[:, None] + 0.5).expand(-1, size[0])
    photo = torch.stack([across / size[0], down / size[1], torch.zeros_like(across)]).mul(255).round().byte()
    (pixels,) = tower.normalise(tower.transform()(Image.fromarray(photo.permute(1, 2, 0).numpy())))
    left, top, right, bottom = tower.encoders[0].preprocessing.seen_box(*size)
    cells = pixels.shape[-1]
    for axis, (start, end) in enumerate(((left, right), (top, bottom))):
        places = torch.arange(cells) + 0.5
        expected = (start + places * (end - start) / cells) / size[axis]
        found = pixels[axis].mean(dim=axis)
        assert (found - expected)[2:-2].abs().max() < 0.75 / 255 + 0.3 / size[axis]


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
    (pixels,) = tower.normalise(tower.transform()(Image.new("RGB", (300, 200), "black")))
    assert pixels.shape == (3, 160, 160)
    torch.testing.assert_close(pixels[:, 0, 0], -torch.tensor([0.1, 0.2, 0.3]))


def test_open_clip_preprocessing_equals_its_own() -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    tower = load_tower([EncoderConfig("open_clip", "ViT-B-32", None)])
    own = image_transform_v2(PreprocessCfg(**tower.encoders[0].visual.preprocess_cfg), is_train=False)
    image = Image.radial_gradient("L").convert("RGB").resize((300, 260))
    difference = (tower.normalise(tower.transform()(image))[0] - own(image)).abs()
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


def test_blocks_above_the_last_wanted_layer_do_not_run() -> None:
    encoder = load_tower([EncoderConfig("timm", "test_vit", None, [-2])]).encoders[0]
    net, pixels = encoder.net, torch.randn(2, 3, 160, 160)
    chosen = {"indices": [len(net.blocks) - 2], "norm": True, "intermediates_only": True, "output_fmt": "NCHW"}
    (whole,) = net.forward_intermediates(pixels, **chosen)
    ran = []
    for number, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert torch.equal(encoder.parts(pixels)[-1], whole)
    assert ran == list(range(len(net.blocks) - 1))


def test_enough_pixels_are_enough_for_every_random_crop() -> None:
    tower = load_tower([EncoderConfig("timm", "test_vit", None)])
    size, enough = tower.encoders[0].preprocessing.size, tower.enough((0.3, 0.9))
    crop = v2.RandomResizedCrop(size, (0.3, 0.9))
    smallest = size
    for shape in ((enough, enough), (enough, 2 * enough), (3 * enough, enough)):
        drawn = [crop.make_params([torch.zeros(3, *shape)]) for _ in range(300)]
        smallest = min([smallest, *(min(box["height"], box["width"]) for box in drawn)])
    assert smallest >= size - 1  # torchvision rounds


def test_bytes_and_normalised_floats_of_a_photo_give_the_same_tokens() -> None:
    tower = load_tower([EncoderConfig("timm", "test_vit", None), EncoderConfig("timm", "test_efficientnet", None)])
    raw = [pixels[None] for pixels in tower.transform()(Image.radial_gradient("L").convert("RGB"))]
    assert [pixels.dtype for pixels in raw] == [torch.uint8, torch.uint8]
    ready = tower.normalise(raw)
    assert all(torch.equal(pixels, again) for pixels, again in zip(ready, tower.normalise(ready), strict=True))
    assert ready[0].min() < 0 < ready[0].max()
    assert torch.equal(tower(raw), tower(ready))
