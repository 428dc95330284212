"""Beams and samples of one prompt share what is the same for all of them: the image, and the reading of the prompt."""

from __future__ import annotations

import pytest
import torch

from tests.invariants.test_method import VISUAL, make_block, make_llama


@pytest.mark.parametrize("visual_rank", [3, None])
def test_beams_share_an_image(visual_rank: int | None) -> None:
    block, beams = make_block(2, visual_rank), 3
    words, visual = torch.randn(6, 5, 64).double(), block.project_visual(torch.randn(2, 4, VISUAL).double())
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    repeated = [tensor.repeat_interleave(beams, dim=0) for tensor in (visual, mask)]
    torch.testing.assert_close(block(words, visual, mask), block(words, *repeated))
    torch.testing.assert_close(block.inner_attention(words, visual, mask), block.inner_attention(words, *repeated))

    model, seen = make_llama(), set()
    project = model.excitors()[2].forward
    model.excitors()[2].forward = lambda words, visual, *rest: (  # type: ignore[method-assign]
        seen.add((len(words), len(visual))) or project(words, visual, *rest)
    )
    images = model.project_visual(torch.randn(2, 4, VISUAL))
    ids = torch.randint(3, 300, (2, 7))
    model.generate(input_ids=ids, visual_prompts=images, num_beams=beams, max_new_tokens=4, do_sample=False)
    assert seen == {(2, 2), (2 * beams, 2)}  # the prompt is read once for all beams


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"num_beams": 2, "do_sample": True}]
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_that_is_read_once_gives_what_reading_it_for_each_does(options: dict, padded: bool) -> None:
    """Asking for hidden states takes upstream's way, one row for each beam or sample."""
    model, ids = make_llama(), torch.randint(3, 300, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, :2] = 1 - padded
    common = {
        "input_ids": ids,
        "attention_mask": mask,
        "visual_prompts": model.project_visual(torch.randn(2, 6, VISUAL)),
    }
    found = []
    for traced in (False, True):
        torch.manual_seed(1)
        written = model.generate(
            **common,
            **options,
            max_new_tokens=6,
            output_hidden_states=traced,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(written)
    assert torch.equal(found[0].sequences, found[1].sequences)
    for once, each in zip(found[0].logits, found[1].logits, strict=True):
        torch.testing.assert_close(once, each)
    assert len(found[1].hidden_states[0][0]) == len(found[1].logits[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_of_a_prompt_only_the_last_token_meets_the_vocabulary(beams: int) -> None:
    """Upstream's `generate` asks for that only where `forward` names `logits_to_keep`."""
    model, widths = make_llama(), []
    model.lm_head.register_forward_hook(lambda module, given, found: widths.append(found.shape[1]))
    model.generate(input_ids=torch.randint(3, 300, (2, 7)), num_beams=beams, max_new_tokens=4, do_sample=False)
    assert set(widths) == {1}
