"""lm-evaluation-harness runs on our language model as it is, and agrees with `forgetting`. Run by `make harnesses`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="an optional extra: `make harnesses` installs it and runs this test")

from excitor_mm.data.mmlu import LETTERS, read_mmlu
from excitor_mm.mmlu import answer_questions
from excitor_mm.model import ExcitorModel

TASK = """
task: anatomy
dataset_path: json
dataset_kwargs:
  data_files:
    dev: {folder}/dev.jsonl
    test: {folder}/test.jsonl
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: 1
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about anatomy.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same questions as CSV files and as a task of the harness."""
    for split, count in (("dev", 1), ("test", 6)):
        (tmp_path / split).mkdir()
        rows = [(f"Which is {n}?", [f"{n}", "no", "red", "a square"], n % 4) for n in range(count)]
        lines = [f"{text},{','.join(choices)},{LETTERS[answer]}\n" for text, choices, answer in rows]
        (tmp_path / split / f"anatomy_{split}.csv").write_text("".join(lines))
        facts = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in rows]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    (tmp_path / "anatomy.yaml").write_text(TASK.format(folder=tmp_path))
    return tmp_path


def scores(model: ExcitorModel, folder: Path) -> tuple[float, list[list[float]]]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=HFLM(pretrained=model.language, tokenizer=model.processor.tokenizer, device="cpu", batch_size=2),
        tasks=["anatomy"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    samples = sorted(found["samples"]["anatomy"], key=lambda sample: sample["doc_id"])
    return found["results"]["anatomy"]["acc,none"], [[float(r[0][0]) for r in s["resps"]] for s in samples]


def test_scores_are_those_of_forgetting(tiny_adapter: Path, folder: Path) -> None:
    model = ExcitorModel.from_pretrained(tiny_adapter, device="cpu")
    rows = answer_questions(model, read_mmlu(folder), None, [], folder / "rows.jsonl", batch_size=4)
    assert [row["shots"] for row in rows] == [1] * 6
    accuracy, tuned = scores(model, folder)
    with model.base_model():
        base_accuracy, base = scores(model, folder)
    for name, theirs, right in (("tuned", tuned, accuracy), ("base", base, base_accuracy)):
        assert right == pytest.approx(sum(row[name] == row["answer"] for row in rows) / 6)
        for row, likelihoods in zip(rows, theirs, strict=True):
            ours = row[f"{name}_log_probabilities"]
            # theirs include the space before the letter, where it is a token of its own
            assert [s - ours[0] for s in ours] == pytest.approx([s - likelihoods[0] for s in likelihoods], abs=1e-3)
    assert tuned != base
