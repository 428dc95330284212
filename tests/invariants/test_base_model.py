"""Switched off, the trained parts are not there: the base model bit for bit, and nothing left behind."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from excitor_mm.config import ExcitorConfig
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.switches import switched_off
from tests.conftest import llama_config
from tests.invariants.test_method import VISUAL

GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def tuned_and_base(
    dtype: torch.dtype = torch.float32, kernel: str = "sdpa"
) -> tuple[ExcitorLlamaForCausalLM, ExcitorLlamaForCausalLM]:
    torch.manual_seed(0)
    model = ExcitorLlamaForCausalLM(llama_config()).to(dtype).eval()
    model.config._attn_implementation = kernel
    base = copy.deepcopy(model)
    model.add_excitors(ExcitorConfig(layers=2, prompts=5, rank=4, visual_rank=3, gate_start=1.0), VISUAL)
    return model, base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_logits_are_the_base_models_with_and_without_an_image(dtype: torch.dtype, kernel: str) -> None:
    model, base = tuned_and_base(dtype, kernel)
    ids, visual = torch.randint(3, 300, (2, 9)), model.project_visual(torch.randn(2, 6, VISUAL))
    tuned = model(ids, visual_prompts=visual).logits
    with switched_off("excitor"):
        assert torch.equal(model(ids, visual_prompts=visual).logits, base(ids).logits)
        assert torch.equal(model(ids).logits, base(ids).logits)
    assert not torch.equal(tuned, base(ids).logits)
    assert torch.equal(model(ids, visual_prompts=visual).logits, tuned)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_base_models(beams: int) -> None:
    model, base = tuned_and_base()
    ids, visual = torch.randint(3, 300, (2, 7)), model.project_visual(torch.randn(2, 6, VISUAL))
    expected = base.generate(input_ids=ids, num_beams=beams, **GREEDY)
    with switched_off("excitor"):
        found = model.generate(input_ids=ids, visual_prompts=visual, num_beams=beams, **GREEDY)
    assert torch.equal(found, expected)
    assert not torch.equal(model.generate(input_ids=ids, visual_prompts=visual, num_beams=beams, **GREEDY), expected)


def test_an_error_inside_leaves_nothing_behind() -> None:
    model, base = tuned_and_base()
    ids = torch.randint(3, 300, (1, 9))
    with pytest.raises(RuntimeError, match="inside"), switched_off("excitor"):
        raise RuntimeError("inside")
    assert not torch.equal(model(ids).logits, base(ids).logits)


def test_the_switch_holds_in_its_own_thread_only() -> None:
    model, base = tuned_and_base()
    ids = torch.randint(3, 300, (1, 9))
    expected, other = model(ids).logits, []
    with switched_off("excitor"):
        worker = threading.Thread(target=lambda: other.append(model(ids).logits))
        worker.start()
        worker.join()
        assert torch.equal(model(ids).logits, base(ids).logits)
    assert torch.equal(other[0], expected)


def test_a_compiled_model_obeys_too() -> None:
    model, base = tuned_and_base()
    ids = torch.randint(3, 300, (1, 9))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits)
        with switched_off("excitor"):
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, base(ids).logits)
