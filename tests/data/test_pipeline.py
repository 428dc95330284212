"""Batches: the loss is that of the answers alone, whatever the padding is."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from excitor_mm.data.pipeline import IGNORE, Example, collate
from excitor_mm.prompts import answer_ids, prompt_ids


def test_labels_are_the_answers_alone(language_folder: Path) -> None:
    """The end token is learnt, although it is also what fills up; LLaMA-Adapter's code ignores token 0 instead."""
    tokenizer = AutoTokenizer.from_pretrained(language_folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    answers = ["A red square.", "Blue."]
    prompt = "A picture:"
    examples = [
        Example(
            i, str(i), prompt_ids(tokenizer, prompt), answer_ids(tokenizer, prompt, text), [torch.zeros(3, 4, 4)], ()
        )
        for i, text in enumerate(answers)
    ]
    for padding in (0, tokenizer.pad_token_id):
        inputs = collate(examples, padding).inputs
        for row, example in enumerate(examples):
            labels = inputs["labels"][row]
            assert labels[labels != IGNORE].tolist() == example.answer
            assert example.answer[-1] == tokenizer.eos_token_id
            assert (labels[: len(example.prompt)] == IGNORE).all()
            kept = inputs["attention_mask"][row].bool()
            assert inputs["input_ids"][row][kept].tolist() == example.prompt + example.answer
            assert (labels[~kept] == IGNORE).all()
