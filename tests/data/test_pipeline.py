"""Batches: the loss is that of the answers alone, whatever the padding is."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from transformers import AutoTokenizer

from excitor_mm.data.pipeline import IGNORE, Example, collate
from excitor_mm.data.transport import pack, unpack
from excitor_mm.prompts import Rendered, answer_ids, prompt_ids


def test_labels_are_the_answers_alone(language_folder: Path) -> None:
    """The end token is learnt, although it is also what fills up; LLaMA-Adapter's code ignores token 0 instead."""
    tokenizer = AutoTokenizer.from_pretrained(language_folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    prompt, examples, answers = "A picture:", [], []
    for text in ("A red square.", "Blue."):
        before, answer = prompt_ids(tokenizer, prompt), answer_ids(tokenizer, prompt, text)
        assert answer[-1] == tokenizer.eos_token_id
        answers.append(answer)
        place = (len(before), len(before) + len(answer))
        examples.append(Example(text, Rendered([*before, *answer], [place], 0), [torch.zeros(3, 4, 4)]))
    for padding in (0, tokenizer.pad_token_id):
        inputs = collate(examples, padding).inputs
        for row, (example, answer) in enumerate(zip(examples, answers, strict=True)):
            labels, kept = inputs["labels"][row], inputs["attention_mask"][row].bool()
            assert labels[labels != IGNORE].tolist() == answer
            assert (labels[: len(example.text.ids) - len(answer)] == IGNORE).all()
            assert inputs["input_ids"][row][kept].tolist() == example.text.ids
            assert (labels[~kept] == IGNORE).all()


def test_what_a_reading_process_hands_over_arrives_as_it_was() -> None:
    text = Rendered([1, 2, 3], [(1, 3)], cut=0)
    shapes = [(3, 4, 4), (3, 4, 4), (2, 5)]
    examples = {
        n: Example(str(n), text, [torch.full(shape, n, dtype=torch.uint8), torch.rand(shape)] if n else None)
        for n, shape in enumerate([(1,), *shapes])
    }
    packed = pack((examples, ("bad",)))
    assert len(packed.stacks) == 4  # two shapes of two precisions
    assert not any(isinstance(leaf, torch.Tensor) for leaf in packed.leaves)
    found, bad = unpack(pickle.loads(pickle.dumps(packed)))
    assert bad == ("bad",)
    assert list(found) == list(examples)
    for n, example in examples.items():
        assert found[n]._replace(pixels=None) == example._replace(pixels=None)
        assert [p.dtype for p in found[n].pixels or []] == [p.dtype for p in example.pixels or []]
        for one, other in zip(found[n].pixels or [], example.pixels or [], strict=True):
            assert torch.equal(one, other)
