"""First queries that are chosen by the prompt: words are told apart, what all words share is not seen."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from excitor_mm.config import RunConfig
from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.prompts import CAPTION_INSTRUCTION, Turn

SPREAD = 1.5


def build(config: RunConfig, spread: float | None) -> ExcitorModel:
    torch.manual_seed(0)
    return build_for_training(
        dataclasses.replace(config, excitor=dataclasses.replace(config.excitor, query_spread=spread))
    )


@torch.no_grad()
def queries(model: ExcitorModel) -> list[torch.Tensor]:
    """A T of every Excitor over the prompt's words after the first, as the Excitor gets them: float[T, r]."""
    ids = model.task_format("caption").render(model.processor.tokenizer, (Turn(CAPTION_INSTRUCTION),)).ids
    seen: list[torch.Tensor] = []
    for excitor in model.language.excitors().values():
        excitor.gate.zero_()  # so that each layer reads what the frozen model gives
        excitor.register_forward_pre_hook(lambda block, args: seen.append(args[0][0, 1:] @ block.query_down.T))
    model.language(torch.tensor([ids]))
    return seen


def test_queries_differ_between_words_alone(run_config: RunConfig) -> None:
    for chosen in queries(build(run_config, SPREAD)):
        assert chosen.mean(dim=0).abs().max() < 1e-3 * SPREAD
        assert 0.5 * SPREAD < chosen.std() < 2 * SPREAD
    random = queries(build(run_config, None))
    assert all(chosen.mean(dim=0).abs().max() > 1e-2 * SPREAD for chosen in random)


def test_spread_scales_the_first_queries(run_config: RunConfig) -> None:
    once, twice = queries(build(run_config, 1.0)), queries(build(run_config, 2.0))
    for small, large in zip(once, twice, strict=True):
        torch.testing.assert_close(large, 2 * small, atol=1e-3, rtol=1e-3)


def test_only_the_query_is_chosen(run_config: RunConfig) -> None:
    chosen = dict(build(run_config, SPREAD).named_parameters())
    for name, parameter in build(run_config, None).named_parameters():
        assert torch.equal(chosen[name], parameter) == ("query_down" not in name), name


def test_a_prompt_without_words_to_tell_apart(run_config: RunConfig) -> None:
    short = dataclasses.replace(run_config, prompt=dataclasses.replace(run_config.prompt, template="a."))
    ids = build(short, None).processor.tokenizer.encode("a.")
    assert len(ids) < 3
    with pytest.raises(ConfigError, match="query_spread to null"):
        build(short, SPREAD)
