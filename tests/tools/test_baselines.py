"""The other methods, for measuring: each is what it says, trains, writes, and leaves the frozen parts alone."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from excitor_mm.adapter import AdapterConfig
from excitor_mm.branches import share_prompt
from excitor_mm.config import DecodingConfig, EncoderConfig, ExcitorConfig, LanguageConfig, Prompts, RunConfig
from excitor_mm.data.pipeline import IGNORE, Example, collate, stack_pixels
from excitor_mm.errors import AdapterError, ConfigError
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.prompts import Rendered
from excitor_mm.vision.tower import load_tower
from tests.conftest import COLOURS, llama_config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import baselines  # noqa: E402 - lies beside the tools
from baselines.base import Parts  # noqa: E402
from baselines.prefix import PrefixModel  # noqa: E402


def make(name: str, config: RunConfig) -> baselines.Baseline:
    torch.manual_seed(0)
    prompts = Prompts(config.templates(), ["red", "square"])
    return baselines.build_baseline(name, config, prompts).eval()


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
def test_answers_behind_one_prompt_cost_what_rows_of_their_own_do(name: str, run_config: RunConfig) -> None:
    """Of two pictures and a text without one, whose prefix nobody sees."""
    model = make(name, run_config)
    shown = model.processor(images=[Image.new("RGB", (40, 40), colour) for colour in COLOURS[:2]])
    images: list = [*([part[row] for part in shown["pixel_values"]] for row in range(2)), None]
    prompt = shown["input_ids"][0].tolist()
    groups = [
        [
            Rendered([*prompt, 40 + row, *tail], [(len(prompt), len(prompt) + 1 + len(tail))], 0)
            for tail in ([], [7, 8])
        ]
        for row in range(3)
    ]
    loss, _ = model(
        **collate([Example("", share_prompt(g), i) for g, i in zip(groups, images, strict=True)], 0).inputs
    )
    apart = [Example("", text, image) for group, image in zip(groups, images, strict=True) for text in group]
    assert loss.item() == pytest.approx(model(**collate(apart, 0).inputs)[0].item(), rel=1e-4)


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


@pytest.mark.parametrize("name", ["llama-adapter", "clipcap", "llava-lora"])
def test_a_saved_folder_gives_the_same_model_again(name: str, run_config: RunConfig, tmp_path: Path) -> None:
    model, again = make(name, run_config), make(name, run_config)
    for parameter in model.trainables().values():
        parameter.data.add_(0.1)
    model.save_pretrained(tmp_path / "best")
    again.load_tensors(tmp_path / "best")
    inputs = batch(model)
    assert torch.equal(model(**inputs)[0], again(**inputs)[0])
    with pytest.raises(AdapterError, match="missing"):
        make("lora", run_config).load_tensors(tmp_path / "best")


@pytest.mark.parametrize("name", ["lora", "llama-adapter", "llava-lora"])
def test_without_a_picture_what_is_trained_acts_and_the_base_model_does_not_see_it(
    name: str, run_config: RunConfig
) -> None:
    model = make(name, run_config)
    for parameter in model.trainables().values():
        parameter.data.add_(0.1)
    ids = batch(model)["input_ids"]
    visual, _ = model.visual_prompts(**stack_pixels([None] * len(ids)))
    bare = make("bare", run_config).language(ids).logits
    assert not torch.equal(model.language(ids, visual_prompts=visual).logits, bare)
    with model.base_model():
        assert torch.equal(model.language(ids, visual_prompts=visual).logits, bare)


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The shapes of the default parts."""
    shape = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    with torch.device("meta"):
        language = ExcitorLlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=30, vocab_size=300))
    tower = load_tower([EncoderConfig(weights=None), EncoderConfig(model="vit_small_patch14_dinov2", weights=None)])
    language.requires_grad_(False)
    described = AdapterConfig(
        LanguageConfig(),
        "",
        [],
        "",
        ExcitorConfig(layers=28),
        Prompts({"caption": "palette"}, ["red"]),
        DecodingConfig(),
    )
    return Parts(tower, language, None, described)


@pytest.mark.parametrize("name", ["llama-adapter", "clipcap", "llava", "lora", "llava-lora"])
def test_sizes_are_chosen_for_equal_numbers_of_parameters(name: str, parts: Parts) -> None:
    ours = copy.deepcopy(parts.language)
    ours.add_excitors(parts.config.excitor, parts.tower.width)
    wanted = sum(p.numel() for p in ours.excitor_tensors().values())
    size = baselines.equal_size(name, parts, wanted)
    model = baselines.add_method(name, copy.deepcopy(parts), size)
    assert 0.9 * wanted <= sum(p.numel() for p in model.trainables().values()) <= 1.1 * wanted
    with pytest.raises(ConfigError, match="not within 10 %"):
        baselines.equal_size(name, parts, 1000)


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
