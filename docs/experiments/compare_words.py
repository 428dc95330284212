"""Does an Excitor learn, from text alone, whether a question names what a caption names? (docs/log.md, 2026-11-28)

python docs/experiments/compare_words.py data/easy-vqa '{question}\nPicture: {caption}\nAnswer:' --steps 300

Prints loss, and every 20 steps the AUC of plain and of negated questions (how often a true one gets a higher log-odds
of yes than a false one) and the share that is right. tools/easy_vqa.py makes the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from excitor_mm.config import ExcitorConfig, LanguageConfig
from excitor_mm.language import load_language

BATCH, RATE, HELD_OUT = 32, 0.004, 240


class Row(NamedTuple):
    """A prompt, whether yes is right, and whether the question is negated."""

    prompt: str
    answer: bool
    negated: bool


def read_rows(folder: Path, template: str) -> list[Row]:
    """The rows of train/text.json, which ask about a caption at even chances, in another template."""
    rows = []
    for told in json.loads((folder / "train" / "text.json").read_text()):
        question, picture, _ = told["instruction"].split("\n")
        prompt = template.replace("{question}", question).replace("{caption}", picture.removeprefix("Picture: "))
        rows.append(Row(prompt, told["output"] == "yes", bool(re.search(r"\b(no|not)\b", question))))
    return rows


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("template", help="\\n stands for a new line")
    parser.add_argument("--steps", type=int, default=300, help="the rate falls in a line to a tenth of it over these")
    options = parser.parse_args()
    rows = read_rows(options.folder, options.template.replace("\\n", "\n"))
    test, train = rows[:HELD_OUT], rows[HELD_OUT:]
    language, tokenizer = load_language(LanguageConfig(dtype="float32", attention="eager"))
    torch.manual_seed(0)
    sizes = ExcitorConfig(layers=18, prompts=30, rank=16, visual_rank=16, gate_start=0.5, prompt_std=1.0)
    language.add_excitors(sizes, None)
    yes, no = (tokenizer.encode(word)[0] for word in (" yes", " no"))

    def logits(rows: list[Row]) -> Tensor:
        tokenizer.padding_side = "left"
        inputs = tokenizer([row.prompt for row in rows], return_tensors="pt", padding=True)
        mask = inputs["attention_mask"]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = language(inputs["input_ids"], attention_mask=mask, position_ids=places, logits_to_keep=1)
        return found.logits[:, -1]

    def scores() -> str:
        with torch.no_grad():
            found = torch.cat([logits(test[start : start + 60]) for start in range(0, HELD_OUT, 60)])
        odds = (found[:, yes] - found[:, no]).tolist()
        said = []
        for negated in (False, True):
            sides: tuple[list[float], list[float]] = ([], [])
            for odd, row in zip(odds, test, strict=True):
                if row.negated == negated:
                    sides[row.answer].append(odd)
            said.append(sum(t > f for f in sides[0] for t in sides[1]) / len(sides[0]) / len(sides[1]))
        right = sum((odd > 0) == row.answer for odd, row in zip(odds, test, strict=True)) / HELD_OUT
        return f"AUC {said[0]:.2f} and {said[1]:.2f}, right {right:.3f}"

    parameters = list(language.excitor_tensors().values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.02)
    chooser = random.Random(0)
    print(f"{len(train)} rows, {scores()}", flush=True)
    for step in range(1, options.steps + 1):
        optimizer.param_groups[0]["lr"] = RATE * min(1, step / 20) * (1 - 0.9 * step / options.steps)
        batch = chooser.sample(train, BATCH)
        loss = F.cross_entropy(logits(batch), torch.tensor([yes if row.answer else no for row in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"{step} loss {loss.item():.3f} {scores() if step % 20 == 0 else ''}", flush=True)


if __name__ == "__main__":
    main()
