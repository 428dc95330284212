"""The other methods, for measuring: each is what it says, trains, writes, and leaves the frozen parts alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.data.pipeline import IGNORE
from tests.conftest import COLOURS, llama_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import baselines  # noqa: E402 - lies beside the tools
from baselines.prefix import PrefixModel  # noqa: E402


def make(name: str, config: RunConfig) -> baselines.Baseline:
    torch.manual_seed(0)
    return baselines.build_baseline(name, config, ("red", "square")).eval()


def batch(model: baselines.Baseline, count: int = 4) -> dict:
    """Coloured squares whose answer is the same for all but its last token."""
    inputs = model.processor(images=[Image.new("RGB", (40, 40), colour) for colour in COLOURS[:count]])
    answer = torch.tensor([[40, 41, 42 + number] for number in range(count)])
    prompt = inputs["input_ids"]
    inputs["labels"] = torch.cat([torch.full_like(prompt, IGNORE), answer], dim=1)
    inputs["input_ids"] = torch.cat([prompt, answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


@pytest.mark.parametrize("name", baselines.TRAINED)
def test_what_is_declared_trains_and_nothing_else_does(name: str, run_config: RunConfig) -> None:
    model = make(name, run_config)
    before = {key: p.clone() for key, p in model.named_parameters()}
    if name == "bare":
        assert not model.trainables()
        return
    optimizer = torch.optim.AdamW(model.trainables().values(), lr=1e-2)
    inputs, losses = batch(model), []
    for _ in range(12):
        loss, count = model(**inputs)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == set(model.trainables())


@pytest.mark.parametrize("name", baselines.TRAINED)
def test_only_methods_with_an_image_see_it(name: str, run_config: RunConfig) -> None:
    model = make(name, run_config)
    for key, parameter in model.trainables().items():
        if "adapter_gate" in key:  # published as 0 at first: then nothing is seen
            parameter.data.fill_(0.5)
    inputs = batch(model)
    other = {**inputs, "pixel_values": [pixels.flip(0) + 1 for pixels in inputs["pixel_values"]]}
    same = torch.equal(model(**inputs)[0], model(**other)[0])
    assert same == (name in ("bare", "lora"))


@pytest.mark.parametrize("name", ["llama-adapter", "llava", "blip2", "git"])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_decoding_equals_uncached_and_batches_equal_singles(
    name: str, beams: int, run_config: RunConfig
) -> None:
    model = make(name, run_config)
    for key, parameter in model.trainables().items():
        if "adapter_gate" in key:
            parameter.data.fill_(0.5)
    inputs = model.processor(images=[Image.new("RGB", (40, 40), colour) for colour in COLOURS[:3]])
    decoding = DecodingConfig(beams=beams, max_new_tokens=6, min_new_tokens=6)
    together = model.generate(**inputs, decoding=decoding)
    assert torch.equal(together, model.generate(**inputs, decoding=decoding, use_cache=False))
    single = {k: [t[:1] for t in v] if isinstance(v, list) else v[:1] for k, v in inputs.items()}
    assert torch.equal(together[:1], model.generate(**single, decoding=decoding))


def test_git_is_as_large_as_the_language_model_and_reads_the_picture(run_config: RunConfig) -> None:
    model = make("git", run_config)
    layers = model.language.git.encoder.layer, make("bare", run_config).language.model.layers
    sizes = [sum(p.numel() for p in stack.parameters()) for stack in layers]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)  # it has biases, and no grouped heads
    inputs = model.processor(images=[Image.new("RGB", (40, 40), colour) for colour in COLOURS[:2]])
    seen = {}

    def note(_: object, given: tuple, __: object) -> None:
        seen.setdefault("first", given[0])

    model.language.git.encoder.register_forward_hook(note)
    model.generate(**inputs, decoding=DecodingConfig(beams=1, max_new_tokens=2))
    image_tokens = model.tower(inputs["pixel_values"]).shape[1]
    assert seen["first"].shape[1] == image_tokens + inputs["input_ids"].shape[1]


def test_llama_adapter_with_closed_gates_is_the_bare_model(run_config: RunConfig) -> None:
    inputs = batch(make("bare", run_config))
    assert torch.equal(make("llama-adapter", run_config)(**inputs)[0], make("bare", run_config)(**inputs)[0])


def test_the_llava_side_is_transformers_llava(run_config: RunConfig) -> None:
    """With the same weights and vision tower, transformers' own class gives the same logits for one picture."""
    model = make("llava", run_config)
    assert isinstance(model, PrefixModel)
    vision = CLIPVisionConfig(
        hidden_size=model.tower.width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64
    )
    chosen = {"image_token_id": 299, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    theirs = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=llama_config(), **chosen))
    theirs.eval().model.language_model.load_state_dict(model.language.model.state_dict())
    theirs.lm_head.load_state_dict(model.language.lm_head.state_dict())
    theirs.model.multi_modal_projector.load_state_dict(model.projector.state_dict())
    pixels, words = torch.randn(1, 3, 64, 64), torch.randint(3, 290, (1, 9))
    tokens = theirs.model.vision_tower(pixels).last_hidden_state
    ids = torch.cat([torch.full((1, tokens.shape[1]), 299), words], dim=1)
    embeddings, mask = model.prefixed(words, torch.ones_like(words), [tokens], None)
    found = model.language(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.testing.assert_close(found, theirs(input_ids=ids, pixel_values=pixels).logits)
