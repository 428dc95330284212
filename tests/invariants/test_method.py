"""The method against the paper's literal formula, and what must follow from it."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from excitor_mm.config import ExcitorConfig
from excitor_mm.errors import ConfigError
from excitor_mm.excitor import Excitor
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.vision.tower import side_by_side
from tests.conftest import llama_config
from tests.literal import attention, extra_key, inner_attention

VISUAL = 24


def make_block(key_heads: int, visual_rank: int | None) -> Excitor:
    torch.manual_seed(3)
    sizes = {"prompts": 5, "rank": 4, "visual_width": VISUAL, "visual_rank": visual_rank}
    return Excitor(64, key_heads, 16, **sizes, gate_start=0.7, prompt_std=1.0).double()


def make_llama(gate: float = 1.0, dtype: torch.dtype = torch.float32, **changes: object) -> ExcitorLlamaForCausalLM:
    torch.manual_seed(0)
    model = ExcitorLlamaForCausalLM(llama_config(**changes)).to(dtype).eval()
    model.add_excitors(ExcitorConfig(layers=2, prompts=5, rank=4, visual_rank=3, gate_start=gate), VISUAL)
    return model


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("visual_rank", [3, None])
@pytest.mark.parametrize("with_image", [True, False])
def test_block_equals_the_literal_formula(key_heads: int, visual_rank: int | None, with_image: bool) -> None:
    block = make_block(key_heads, visual_rank)
    words, image = torch.randn(2, 7, 64).double(), torch.randn(2, 6, VISUAL).double()
    delta = block(words, block.project_visual(image) if with_image else None)
    for sample in range(2):
        expected = extra_key(block, words[sample], image[sample] if with_image else None)
        expected = (block.gate[:, None, None] * expected).transpose(0, 1).flatten(1)
        torch.testing.assert_close(delta[sample], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_a_block_gives_the_same_without_a_backward_pass(key_heads: int) -> None:
    """It then takes columns without copying them; `generate` does so."""
    block = make_block(key_heads, 3)
    words, image = torch.randn(2, 7, 64).double(), torch.randn(2, 6, VISUAL).double()
    with torch.no_grad():
        found = block(words, block.project_visual(image))
    torch.testing.assert_close(found, block(words, block.project_visual(image)).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("visual_rank", [3, None])
def test_inner_attention_equals_the_literal_formula(visual_rank: int | None) -> None:
    block = make_block(2, visual_rank)
    words, image = torch.randn(2, 7, 64).double(), torch.randn(2, 6, VISUAL).double()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    weights = block.inner_attention(words, block.project_visual(image), mask)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 7).double())
    torch.testing.assert_close(weights[0], inner_attention(block, words[0], image[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights[1, ..., :-2], inner_attention(block, words[1], image[1, :4]))
    assert not weights[1, ..., -2:].any()


def test_scores_beyond_the_range_of_float16_stay_finite() -> None:
    block = make_block(2, 3)
    words, image = (10_000 * torch.randn(2, 7, 64)).half(), (100 * torch.randn(2, 6, VISUAL)).half()
    expected = block(words.double(), block.project_visual(image.double()))
    block.float()
    scores = (block.query_up @ block.query_down @ words.float().mT).mT @ block.prompts.mT
    assert scores.detach().abs().max() > torch.finfo(torch.float16).max
    found = block(words, block.project_visual(image))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_layer_equals_softmax_of_the_sum_of_both_scores(key_heads: int) -> None:
    model = make_llama(key_heads=key_heads, dtype=torch.float64)
    model.config._attn_implementation = "sdpa"  # eager rounds its softmax to fp32
    layer = model.model.layers[-1].self_attn.double()
    words, image = torch.randn(1, 6, 64).double(), torch.randn(1, 5, VISUAL).double()
    cos, sin = model.model.rotary_emb(words, torch.arange(6)[None])
    mask = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    visual = model.double().project_visual(image)
    fused, _ = layer(words, position_embeddings=(cos, sin), attention_mask=mask, visual_prompts=visual)
    expected = attention(layer, words[0], image[0], cos[0], sin[0])
    torch.testing.assert_close(fused[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_closed_gate_is_the_base_model_bit_for_bit(dtype: torch.dtype, kernel: str, tied: bool) -> None:
    torch.manual_seed(0)
    model = ExcitorLlamaForCausalLM(llama_config(tie_word_embeddings=tied)).to(dtype).eval()
    model.config._attn_implementation = kernel
    base = copy.deepcopy(model)
    model.add_excitors(ExcitorConfig(layers=2, prompts=5, rank=4, visual_rank=3, gate_start=0.0), VISUAL)
    ids = torch.randint(3, 300, (2, 9))
    visual = model.project_visual(torch.randn(2, 6, VISUAL))
    expected = base(ids).logits
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids, visual_prompts=visual).logits, expected)


@pytest.mark.parametrize("visual_rank", [3, None])
def test_all_layers_project_the_image_as_each_does(visual_rank: int | None) -> None:
    model = ExcitorLlamaForCausalLM(llama_config())
    model.add_excitors(ExcitorConfig(layers=2, prompts=5, rank=4, visual_rank=visual_rank), VISUAL)
    image = torch.randn(2, 6, VISUAL)
    alone = [block.project_visual(image) for block in model.excitors().values()]
    torch.testing.assert_close(model.project_visual(image), torch.stack(alone, dim=1))
    encoders = torch.randn(2, 6, VISUAL - 10), torch.randn(2, 4, 10)
    torch.testing.assert_close(model.project_visual(*encoders), model.project_visual(side_by_side(encoders)))


def test_open_gate_is_not_the_base_model() -> None:
    ids = torch.randint(3, 300, (1, 9))
    assert not torch.equal(make_llama(gate=1.0)(ids).logits, make_llama(gate=0.0)(ids).logits)


def test_masked_image_is_no_image() -> None:
    model = make_llama()
    ids, image = torch.randint(3, 300, (2, 9)), torch.randn(2, 6, VISUAL)
    visual = model.project_visual(image)
    mask = torch.tensor([[True] * 6, [False] * 6])
    mixed = model(ids, visual_prompts=visual, visual_mask=mask).logits
    torch.testing.assert_close(mixed[1:], model(ids[1:]).logits)
    torch.testing.assert_close(mixed[:1], model(ids[:1], visual_prompts=visual[:1]).logits)


def test_extra_key_is_causal_and_the_first_position_is_out_of_reach() -> None:
    model = make_llama()
    ids, image = torch.randint(3, 300, (1, 9)), torch.randn(1, 6, VISUAL)
    visual, other = model.project_visual(image), model.project_visual(image + 1)
    logits = model(ids, visual_prompts=visual).logits
    changed = ids.clone()
    changed[0, -1] += 1 - 2 * (changed[0, -1] > 200)
    torch.testing.assert_close(model(changed, visual_prompts=visual).logits[:, :-1], logits[:, :-1])
    difference = (model(ids, visual_prompts=other).logits - logits).abs().amax(dim=-1)[0]
    assert difference[0] == 0
    assert (difference[1:] > 1e-6).all()


def test_image_reaches_every_generated_token() -> None:
    model = make_llama()
    ids, image = torch.randint(3, 300, (1, 5)), torch.randn(1, 6, VISUAL)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    out = model.generate(input_ids=ids, visual_prompts=model.project_visual(image), **options)
    score = [
        model(out, visual_prompts=model.project_visual(i)).logits[0, 4:-1] for i in (image, image + 1)
    ]  # teacher-forced on the same text
    assert ((score[0] - score[1]).abs().amax(dim=-1) > 1e-6).all()
    steps = [
        torch.stack(
            model.generate(
                input_ids=ids,
                visual_prompts=model.project_visual(i),
                **options,
                output_logits=True,
                return_dict_in_generate=True,
            ).logits
        )
        for i in (image, image + 1)
    ]  # each decoding step itself, not only the prompt, sees the picture
    assert ((steps[0] - steps[1]).abs().amax(dim=(1, 2)) > 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"do_sample": True, "top_p": 0.9, "temperature": 1.5},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "num_beams": 4},
    ],
)
def test_cached_decoding_equals_uncached(options: dict) -> None:
    model = make_llama()
    ids = torch.randint(3, 300, (3, 7))
    visual = model.project_visual(torch.randn(3, 6, VISUAL))
    common = {"input_ids": ids, "visual_prompts": visual, "max_new_tokens": 10, "do_sample": False, **options}
    torch.manual_seed(1)
    cached = model.generate(**common)
    torch.manual_seed(1)
    common.pop("cache_implementation", None)
    assert torch.equal(cached, model.generate(**common, use_cache=False))


def test_what_generation_absorbs_is_gone_afterwards() -> None:
    model = make_llama()
    ids, visual = torch.randint(3, 300, (2, 7)), model.project_visual(torch.randn(2, 6, VISUAL))
    for wrong in ({}, {"unknown": 1}):  # also when it ends with an error
        before = model(ids, visual_prompts=visual).logits
        with pytest.raises(ValueError, match="unknown") if wrong else contextlib.nullcontext():
            model.generate(input_ids=ids, visual_prompts=visual, max_new_tokens=2, do_sample=False, **wrong)
        with torch.no_grad():
            for block in model.excitors().values():
                block.gate.mul_(-1)
        assert not torch.allclose(model(ids, visual_prompts=visual).logits, before)


def test_left_padded_batch_equals_single_samples() -> None:
    model = make_llama()
    long, short = torch.randint(3, 300, (1, 9)), torch.randint(3, 300, (1, 5))
    visual = model.project_visual(torch.randn(2, 6, VISUAL))
    padded = torch.cat([long, torch.cat([torch.full((1, 4), 2), short], dim=1)])
    mask = torch.ones_like(padded)
    mask[1, :4] = 0
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    both = model.generate(input_ids=padded, attention_mask=mask, visual_prompts=visual, **options)
    for row, ids in enumerate((long, short)):
        alone = model.generate(input_ids=ids, visual_prompts=visual[row : row + 1], **options)
        assert torch.equal(both[row, 9:], alone[0, ids.shape[1] :])


def gradients(model: ExcitorLlamaForCausalLM, ids: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(ids, visual_prompts=model.project_visual(image), use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = make_llama().train()
    ids, image = torch.randint(3, 300, (2, 7)), torch.randn(2, 6, VISUAL)
    expected = gradients(model, ids, image)
    model.activation_checkpointing_enable()
    found = gradients(model, ids, image)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_compiles_as_one_graph() -> None:
    model = make_llama()
    ids, visual = torch.randint(3, 300, (2, 7)), make_llama().project_visual(torch.randn(2, 6, VISUAL))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(ids, visual_prompts=visual, use_cache=False).logits
        torch.testing.assert_close(found, model(ids, visual_prompts=visual, use_cache=False).logits)


def test_trainables_are_exactly_the_excitors_and_lower_layers_run_without_grad() -> None:
    model = make_llama()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".k_proj.excitor." in name for name in names)
    assert {int(name.split(".")[2]) for name in names} == {1, 2}
    seen = {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out.requires_grad}))
    model(torch.randint(3, 300, (1, 5)))
    assert seen == {0: False, 1: True, 2: True}


def test_parameter_count_of_the_7b_shape_is_the_papers() -> None:
    """30 (30 x 4096 + 2 x 16 x 4096) = 7,618,560, the "7.6M", plus a gate for each of 32 heads and 30 layers."""
    with torch.device("meta"):
        model = ExcitorLlamaForCausalLM(
            llama_config(
                key_heads=32,
                layers=32,
                hidden_size=4096,
                intermediate_size=11008,
                num_attention_heads=32,
                vocab_size=32000,
            )
        )
        model.add_excitors(ExcitorConfig(layers=30, prompts=30, rank=16, visual_rank=16), 768)
    counts = {"visual": 0, "gate": 0, "rest": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = next((k for k in ("visual", "gate") if k in name.rsplit(".", 1)[1]), "rest")
            counts[kind] += parameter.numel()
    assert counts == {"rest": 7_618_560, "gate": 30 * 32, "visual": 4_669_440}


def test_too_many_layers_are_refused() -> None:
    model = ExcitorLlamaForCausalLM(llama_config())
    with pytest.raises(ConfigError, match=r"7.*3 layers"):
        model.add_excitors(ExcitorConfig(layers=7), None)
