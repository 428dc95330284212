"""Answers that share a prompt are learnt as in rows of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from excitor_mm.batches import Windows
from excitor_mm.branches import share_prompt
from excitor_mm.config import LoraConfig, RunConfig
from excitor_mm.data.pipeline import Example, ExampleMaker, collate
from excitor_mm.data.samples import Sample
from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.prompts import Rendered
from excitor_mm.train import train
from tests.conftest import jpeg, make_shards, tiny_run
from tests.invariants.test_training import change


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, language_folder: Path, encoder_file: Path) -> RunConfig:
    folder = tmp_path_factory.mktemp("branches")
    return tiny_run(language_folder, encoder_file, make_shards(folder / "shards", [5, 3]), folder / "run")


def gradients(model: ExcitorModel, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.trainables().values()))
    return dict(zip(model.trainables(), found, strict=True))


def row(prompt: list[int], answer: list[int], earlier: tuple[int, int] | None = None) -> Rendered:
    place = (len(prompt), len(prompt) + len(answer))
    return Rendered([*prompt, *answer], [*([earlier] if earlier else []), place], 0)


TEXTS = {
    "captions": [row([5, 6, 7, 8], [9, 10, 1]), row([5, 6, 7, 8], [11, 1]), row([5, 6, 7, 8], [9, 12, 13, 14, 1])],
    "turns": [row([5, 6, 7, 1, 8, 9], [10, 1], (2, 4)), row([5, 6, 7, 1, 8, 9], [11, 12, 1], (2, 4))],
    "cut": [row([5, 6, 7, 8], [9, 1]), row([5, 7, 8], [9, 10, 11, 1])],
    "one": [row([5, 6, 7], [8, 1])],
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lora", [0, 2])
def test_losses_and_gradients_are_those_of_rows_of_their_own(config: RunConfig, attention: str, lora: int) -> None:
    """All texts at once, padded to one length, with and without an image, against one text at a time."""
    language = dataclasses.replace(config.language, attention=attention)
    torch.manual_seed(0)
    model = build_for_training(dataclasses.replace(config, language=language, lora=LoraConfig(rank=lora))).double()
    for tensor in model.trainables().values():
        torch.nn.init.normal_(tensor, std=0.3)  # a saturated float32 softmax has gradients of rounding noise
    images: dict[str, list[Tensor] | None] = {name: [torch.randn(3, 32, 32).double()] for name in TEXTS}
    images["one"] = None

    together = collate([Example(name, share_prompt(texts), images[name]) for name, texts in TEXTS.items()], 0)
    loss, count = model(**together.inputs)

    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for name, texts in TEXTS.items():
        for number, text in enumerate(texts):
            learnt = text.answers[-1:] if number and name == "turns" else text.answers  # earlier answers once
            alone, each = model(**collate([Example(name, text._replace(answers=learnt), images[name])], 0).inputs)
            expected, tokens = expected + alone, tokens + int(each)
    assert int(count) == tokens
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)  # losses and softmax are float32
    wanted = gradients(model, expected)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-4 * float(wanted[name].abs().max()))


def test_a_prompt_is_held_once() -> None:
    shared = share_prompt(TEXTS["captions"])
    assert shared.ids == [5, 6, 7, 8, 9, 10, 1, 8, 11, 1, 8, 9, 12, 13, 14, 1]
    assert shared.branches == [0] * 3 + [1] * 4 + [2] * 3 + [3] * 6
    assert [shared.ids[start:end] for start, end in shared.answers] == [[9, 10, 1], [11, 1], [9, 12, 13, 14, 1]]


def test_an_answer_does_not_see_the_others(config: RunConfig) -> None:
    """Another first answer leaves the losses of the second bit for bit as they were."""
    model = build_for_training(config)
    prompt, second = [5, 6, 7, 8], []
    for first in ([9, 10, 1], [13, 14, 1]):
        text = share_prompt([row(prompt, first), row(prompt, [11, 1])])
        losses, _ = model.answer_losses(**collate([Example("a", text, [torch.ones(3, 32, 32)])], 0).inputs)
        second.append(losses[len(first) :])
    assert torch.equal(*second)


@pytest.mark.parametrize(("answers", "learnt"), [(1, 1), (3, 3), (9, 5)])
def test_different_answers_are_drawn(config: RunConfig, answers: int, learnt: int) -> None:
    """Without replacement, and as many as there are; over some visits every one."""
    model = build_for_training(config)
    tokenizer = model.processor.tokenizer
    maker = ExampleMaker(tokenizer, model.task_format("caption"), lambda _: [], 0, 10**8, draw=True, answers=answers)
    words = ("red", "blue", "green", "black", "white")
    sample = Sample("7", 7, jpeg(), tuple(f"a {word} square" for word in words))
    seen = set()
    for epoch in range(40):
        text = maker(sample, epoch).text
        said = [
            tokenizer.decode(text.ids[start:end], skip_special_tokens=True).strip() for start, end in text.answers
        ]
        assert len(said) == len(set(said)) == learnt
        seen |= set(said)
    assert len(seen) == 5


@pytest.mark.parametrize("answers", [1, 2])
def test_training_learns_as_many_answers_as_are_asked_for(config: RunConfig, tmp_path: Path, answers: int) -> None:
    """Each of the eight samples has two captions, and each caption one end."""
    asked = change(config, output=str(tmp_path / "run"), answers=answers, steps=2)
    model = build_for_training(asked)
    windows = Windows(asked, model, Accelerator(cpu=True), 0)
    batches = windows.next().batches
    windows.close()
    ends = sum(int((batch.inputs["labels"] == model.processor.tokenizer.eos_token_id).sum()) for batch in batches)
    assert ends == 8 * answers
    assert train(asked).is_dir()


def test_flash_attention_is_refused(config: RunConfig) -> None:
    language = dataclasses.replace(config.language, attention="flash_attention_2")
    with pytest.raises(ConfigError, match="take sdpa"):
        train(change(dataclasses.replace(config, language=language), answers=5))
