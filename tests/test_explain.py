"""An explanation is the literal formula's numbers, and its maps lie where the picture was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from excitor_mm.cli import main
from excitor_mm.config import EncoderConfig, Prompts, RunConfig
from excitor_mm.errors import AdapterError, ConfigError
from excitor_mm.explain import explain
from excitor_mm.heatmap import photo_maps
from excitor_mm.model import ExcitorModel
from excitor_mm.train import build_for_training
from excitor_mm.vision.tower import VisionTower, load_tower
from tests.literal import attention_weights, inner_attention

ANSWER = "A red square in blue."


@pytest.fixture
def model(run_config: RunConfig) -> ExcitorModel:
    torch.manual_seed(0)
    return build_for_training(run_config)


def photo(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Black, with one white box."""
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle(box, fill="white")
    return image


def test_numbers_are_those_of_the_literal_formula(model: ExcitorModel) -> None:
    image = photo((64, 48), (10, 10, 30, 30))
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        model.language.model.layers[index].self_attn.register_forward_pre_hook(
            lambda layer, _, given: seen.update({layer.layer_idx: given["hidden_states"][0]}), with_kwargs=True
        )
        for index in model.language.excitors()
    ]
    found = explain(model, image, answer=ANSWER)
    [hook.remove() for hook in hooks]
    tokens = model.tower([pixels[None] for pixels in model.tower.transform()(image)])[0]
    assert found.words == tuple(ANSWER.split())
    assert len(found.rows) == found.inner.shape[-1] == 4 + len(tokens)

    tokenizer, prompt = model.processor.tokenizer, model.processor.prompt
    start = len(tokenizer.encode(prompt))
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(prompt + " " + ANSWER)[start:]]
    owners = np.cumsum([piece.startswith(" ") for piece in pieces]) - 1
    for place, index in enumerate(found.layers):
        layer, words = model.language.model.layers[index].self_attn, seen[index]
        with torch.no_grad():
            inner = inner_attention(layer.k_proj.excitor, words, tokens)[:, start - 1 : -1].transpose(0, 1)
            cos, sin = model.language.model.rotary_emb(words[None], torch.arange(len(words))[None])
            pair = [attention_weights(layer, words, tokens, cos[0], sin[0], excited) for excited in (True, False)]
        shift = (pair[0] - pair[1]).abs().sum(dim=-1)[:, start - 1 : -1].T / 2
        for word in range(len(found.words)):
            chosen = torch.from_numpy(owners == word)
            np.testing.assert_allclose(found.inner[word, place], inner[chosen].mean(dim=0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.shifts[word, place], shift[chosen].mean(dim=0), rtol=1e-3, atol=1e-5)


def test_shares_and_maps_add_up(model: ExcitorModel) -> None:
    found = explain(model, photo((90, 48), (10, 10, 30, 30)), answer=ANSWER)
    np.testing.assert_allclose(found.inner.sum(axis=-1), 1, rtol=1e-5)
    shares = found.shares()
    assert set(shares) == {"prompts", "test_vit whole picture", "test_vit patches"}
    np.testing.assert_allclose(sum(map(np.array, shares.values())), 1, rtol=1e-5)
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), shares["test_vit patches"], rtol=1e-4)
    assert (found.shifts > 0).all()
    assert (found.shifts < 1).all()


def test_questions_are_explained_with_the_prompt_they_are_asked_with(run_config: RunConfig) -> None:
    asking = dataclasses.replace(
        run_config,
        data=dataclasses.replace(run_config.data, task="vqa"),
        prompt=dataclasses.replace(run_config.prompt, template="short-answer"),
    )
    model = build_for_training(asking)
    image, question = photo((48, 48), (10, 10, 30, 30)), "Which colour?"
    found = explain(model, image, question=question, answer="red")
    plain = explain(model, image, prompt="Question: Which colour?\nShort answer:", answer="red")
    np.testing.assert_array_equal(found.inner, plain.inner)
    with pytest.raises(AdapterError, match="not for caption"):
        explain(model, image)


def test_a_question_that_is_asked_with_a_caption_is_explained_with_it(
    model: ExcitorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = {"vqa": "{question}\nPicture: {caption}\nAnswer:", "caption": "A picture:"}
    model.config = dataclasses.replace(model.config, prompts=Prompts(templates))
    image, question = photo((48, 48), (10, 10, 30, 30)), "Which colour?"
    images, encode = [], model.tower.encode
    monkeypatch.setattr(model.tower, "encode", lambda pixels: images.append(len(pixels[0])) or encode(pixels))
    found = explain(model, image, question=question, answer="red")
    assert images == [1], "for the caption, the answer and the map together"
    whole = f"{question}\nPicture: {model.caption(image)}\nAnswer:"
    np.testing.assert_array_equal(found.inner, explain(model, image, prompt=whole, answer="red").inner)


def test_closed_gates_move_nothing(model: ExcitorModel) -> None:
    for block in model.language.excitors().values():
        block.gate.data.zero_()
    found = explain(model, photo((48, 48), (10, 10, 30, 30)), answer=ANSWER)
    assert not found.shifts.any()
    assert not found.maps.any()


def test_explaining_leaves_the_model_as_it_was(model: ExcitorModel) -> None:
    image = photo((48, 48), (10, 10, 30, 30))
    inputs = model.processor(images=[image])
    before = model.generate(**inputs, output_logits=True, return_dict_in_generate=False)
    assert explain(model, image).words == tuple(model.processor.batch_decode(before)[0].split())
    assert torch.equal(model.generate(**inputs), before)
    assert not any(module._forward_pre_hooks for module in model.language.modules())
    assert model.language.config._attn_implementation == "sdpa"


TOWERS = {
    "class token": [EncoderConfig("timm", "test_vit", None)],
    "two layers": [EncoderConfig("timm", "test_vit", None, [-2, -1])],
    "cnn": [EncoderConfig("timm", "test_efficientnet", None)],
    "two encoders": [EncoderConfig("timm", "test_efficientnet", None), EncoderConfig("timm", "test_vit", None)],
}


def cell_brightness(tower: VisionTower, image: Image.Image) -> np.ndarray:
    """What an attention would be that goes by brightness alone; tokens of the whole picture get a lot."""
    rows = []
    for encoder, pixels in zip(tower.encoders, tower.normalise(tower.transform()(image)), strict=True):
        for block in encoder.layout():
            if block.grid is None:
                rows.append(torch.full((block.tokens,), 9.0))
            else:
                black = pixels.min()
                rows.append(torch.nn.functional.adaptive_avg_pool2d(pixels[:1] - black, block.grid).flatten())
    return torch.cat(rows)[None].float().numpy()


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS.keys())
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((200, 200), (20, 140, 60, 180)),
        ((400, 200), (240, 40, 279, 79)),
        ((150, 450), (30, 250, 69, 289)),
    ],
    ids=["square", "wide", "tall"],
)
def test_a_bright_object_is_found_where_it_is(
    tower: list[EncoderConfig], size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    encoders = load_tower(tower)
    weights = cell_brightness(encoders, photo(size, box))
    maps, seen = photo_maps(weights, encoders, size)
    height, width = seen.shape
    assert abs(width / height - size[0] / size[1]) < 0.02
    assert not maps[:, ~seen].any()
    share = maps[0] / maps[0].sum()
    centre = (share.sum(axis=0) @ (np.arange(width) + 0.5), share.sum(axis=1) @ (np.arange(height) + 0.5))
    for axis, found in enumerate(centre):
        true = (box[axis] + box[axis + 2] + 1) / 2
        assert abs(found * size[axis] / seen.shape[1 - axis] - true) < 0.02 * min(size)
    sides = [
        slice(round(box[1 - a] * s / size[1 - a]), round((box[3 - a] + 1) * s / size[1 - a]))
        for a, s in enumerate(seen.shape)
    ]
    assert share[tuple(sides)].sum() > 0.25  # a tenth of a photo at most, in cells as large as itself


def test_only_the_crop_is_seen() -> None:
    tower = load_tower([EncoderConfig("timm", "test_vit", None)])
    ratio = tower.encoders[0].preprocessing.resize_ratio
    weights = np.ones((1, 101), np.float32)
    maps, seen = photo_maps(weights, tower, (600, 200))
    height, width = seen.shape
    across, down = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    assert len(across) * 600 / width == pytest.approx(200 / ratio, abs=4)
    assert len(down) * 200 / height == pytest.approx(200 / ratio, abs=4)
    assert (across[0] + across[-1] + 1) / 2 == pytest.approx(width / 2, abs=2)
    assert maps.sum() == pytest.approx(100)


def test_the_command_writes_picture_and_data(run_config: RunConfig, tmp_path: Path, capsys) -> None:
    build_for_training(run_config).save_pretrained(tmp_path / "adapter")
    photo((80, 40), (10, 10, 30, 30)).save(tmp_path / "x.png")
    command = ["explain", str(tmp_path / "x.png"), "--adapter", str(tmp_path / "adapter"), "--answer", ANSWER]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "square" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert [word["word"] for word in facts["words"]] == ANSWER.split()
    arrays = np.load(tmp_path / "out" / "explanation.npz")
    assert arrays["maps"].shape == (5, *arrays["seen"].shape)
    assert Image.open(tmp_path / "out" / "explanation.png").width == 4 * arrays["seen"].shape[1]
    assert main([*command[:-1], " ", "--output", str(tmp_path / "out")]) == 2
    assert "An answer is empty" in capsys.readouterr().err


def test_a_model_without_encoders_cannot_be_explained(model: ExcitorModel) -> None:
    model.tower.encoders = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="no encoder"):
        explain(model, photo((48, 48), (1, 1, 9, 9)))
