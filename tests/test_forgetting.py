"""Base against tuned: the same questions, the official prompt, and differences that are real."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from excitor_mm.cli import main
from excitor_mm.config import DecodingConfig, ExcitorConfig, LanguageConfig, LoraConfig, Prompts
from excitor_mm.data.mmlu import read_mmlu
from excitor_mm.errors import DataError
from excitor_mm.likelihood import score_next_token, score_text
from excitor_mm.model import ExcitorModel, build_model
from tests.conftest import COLOURS, jpeg

ORIGINAL = '"Is ""red, green"" a pair?",yes,no,perhaps,never,A\nWhat is red?,blood,grass,snow,night,A\n'
HEADER = "question,choice0,choice1,choice2,choice3,answer\n"
TEXT = "\n\n".join(f"A picture of a {c} square in {c}, and below it there is another in white." for c in COLOURS)


def write_mmlu(folder: Path, questions: int = 4) -> Path:
    for subject in ("anatomy", "world_religions"):
        for split, count in (("dev", 5), ("test", questions)):
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"{subject[:3]} {i}?,a{i},b,c,d,{'ABCD'[i % 4]}\n" for i in range(count)]
            path.write_text("".join(rows))
    return folder


@pytest.fixture
def model(tiny_adapter: Path) -> ExcitorModel:
    return ExcitorModel.from_pretrained(tiny_adapter, device="cpu")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_both_layouts_hold_the_same_questions(tmp_path: Path) -> None:
    for name, header, rows in (("a", "", ORIGINAL), ("b", HEADER, ORIGINAL.replace(",A\n", ",0\n"))):
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        (folder / "colours_test.csv").write_text(header + rows)
    with tarfile.open(tmp_path / "b" / "mmlu.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "b" / "test", "mmlu/test")
    first, second, packed = (read_mmlu(tmp_path / path) for path in ("a", "b", "b/mmlu.tar.gz"))
    assert first == second == packed
    assert [question.text for question in first[0].questions] == ['Is "red, green" a pair?', "What is red?"]


def test_the_prompt_is_the_official_one(tmp_path: Path) -> None:
    subject = read_mmlu(write_mmlu(tmp_path))[1]
    prompt = subject.prompt(subject.questions[0], shots=1)
    assert prompt == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "wor 0?\nA. a0\nB. b\nC. c\nD. d\nAnswer: A\n\n"
        "wor 0?\nA. a0\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert subject.prompt(subject.questions[0]).count("Answer: ") == 5


def test_a_sample_is_the_same_every_time(tmp_path: Path) -> None:
    folder = write_mmlu(tmp_path, questions=30)
    samples = [[q.number for q in read_mmlu(folder, 7)[0].questions] for _ in range(2)]
    assert samples[0] == samples[1] == sorted(set(samples[0]))
    assert len(samples[0]) == 7
    assert read_mmlu(folder, 7)[0].available == 30
    assert samples[0] != [q.number for q in read_mmlu(folder, 7)[1].questions]


@pytest.mark.parametrize("row", ["q,a,b,c,A\n", "q,a,b,c,d,E\n", "q,a,b,c,d,4\n"])
def test_a_row_that_is_no_question_is_a_sentence(tmp_path: Path, row: str) -> None:
    (tmp_path / "x_test.csv").write_text(ORIGINAL + row)
    with pytest.raises(DataError, match=r"Row 3 of x_test\.csv"):
        read_mmlu(tmp_path)
    with pytest.raises(DataError, match="no SUBJECT_test"):
        read_mmlu(Path(__file__).parent / "harnesses")


@pytest.mark.parametrize("with_image", [False, True])
def test_a_shared_beginning_changes_no_score(model: ExcitorModel, with_image: bool) -> None:
    visual = model.visual_prompts(model.processor(images=[jpeg()])["pixel_values"])[0] if with_image else None
    head = torch.randint(3, 300, (9,)).tolist()
    prompts = [head + torch.randint(3, 300, (n,)).tolist() for n in (4, 1, 7)] + [head]
    candidates = [5, 200]
    found = [row for batch in score_next_token(model, prompts, candidates, visual, 2) for row in batch]
    for prompt, scores in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model.language(torch.tensor([prompt]), visual_prompts=visual).logits[0, -1]
        torch.testing.assert_close(torch.tensor(scores), logits.log_softmax(-1)[candidates], rtol=1e-4, atol=1e-4)


def test_blocks_of_text_add_up_to_its_loss(model: ExcitorModel) -> None:
    ids = torch.randint(3, 300, (150,)).tolist()
    scores = score_text(model, ids, window=100, block=32)
    assert scores.tokens.tolist() == [32, 32, 32, 3, 32, 17]
    with torch.no_grad():
        expected = sum(
            F.cross_entropy(model.language(part[None]).logits[0, :-1], part[1:], reduction="sum").item()
            for part in torch.tensor(ids).split(100)
        )
    assert scores.losses.sum() == pytest.approx(expected, rel=1e-4)


def measure(adapter: Path, text: Path, mmlu: Path, output: Path, *more: str) -> dict:
    command = ["forgetting", "--adapter", str(adapter), "--text", str(text), "--mmlu", str(mmlu)]
    assert main([*command, "--output", str(output), *more]) == 0
    return json.loads((output / "report.json").read_text())


def test_closed_gates_forget_nothing(tiny_adapter: Path, model: ExcitorModel, text: Path, tmp_path: Path) -> None:
    for block in model.language.excitors().values():
        block.gate.data.zero_()
    model.save_pretrained(tmp_path / "closed")
    mmlu = write_mmlu(tmp_path / "mmlu")
    closed = measure(tmp_path / "closed", text, mmlu, tmp_path / "a")
    assert closed["scores"]["MMLU change"] == closed["scores"]["perplexity change"] == 0
    assert closed["intervals"]["MMLU change"] == [0, 0]
    for name in ("same letter", "same next token", "same continuation"):
        assert closed["scores"][name] == 100

    (tmp_path / "x.jpg").write_bytes(jpeg())
    opened = measure(tiny_adapter, text, mmlu, tmp_path / "b")
    seeing = measure(tiny_adapter, text, mmlu, tmp_path / "c", "--image", str(tmp_path / "x.jpg"))
    assert opened["perplexity"]["base"] == seeing["perplexity"]["base"] == closed["perplexity"]["base"]
    assert len({report["perplexity"]["tuned"] for report in (closed, opened, seeing)}) == 3
    rows = [
        [json.loads(line) for line in (tmp_path / name / "mmlu.jsonl").read_text().splitlines()] for name in "abc"
    ]
    assert len(rows[0]) == opened["count"] == 8
    for first, second, third in zip(*rows, strict=True):
        assert first["base_log_probabilities"] == second["base_log_probabilities"] == third["base_log_probabilities"]
        assert first["tuned_log_probabilities"] == first["base_log_probabilities"]
        assert second["tuned_log_probabilities"] != third["tuned_log_probabilities"]
    right = np.mean([row["tuned"] == row["answer"] for row in rows[1]])
    assert opened["scores"]["MMLU tuned"] == pytest.approx(100 * right)
    assert opened["fewer_shots"] == 8  # 256 tokens of context hold fewer than five examples
    assert 0 < min(row["shots"] for row in rows[0]) < 5
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_an_interrupted_run_goes_on(tiny_adapter: Path, text: Path, tmp_path: Path, capsys) -> None:
    mmlu, output = write_mmlu(tmp_path / "mmlu"), tmp_path / "out"
    whole = measure(tiny_adapter, text, mmlu, output)
    lines = (output / "mmlu.jsonl").read_text().splitlines(keepends=True)
    marked = [line.replace('"shots": ', '"shots": 1') for line in lines[:4]]
    (output / "mmlu.jsonl").write_text("".join(marked))  # as if killed after the first subject
    (output / "report.json").unlink()
    assert measure(tiny_adapter, text, mmlu, output)["scores"] == whole["scores"]
    assert (output / "mmlu.jsonl").read_text().splitlines(keepends=True) == marked + lines[4:]
    command = ["forgetting", "--adapter", str(tiny_adapter), "--text", str(text), "--output", str(output)]
    assert main([*command, "--mmlu", str(mmlu), "--questions", "2"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert "MMLU" not in json.loads((output / "report.json").read_text())["scores"]


def test_what_cannot_be_measured_is_a_sentence(tiny_adapter: Path, text: Path, tmp_path: Path, capsys) -> None:
    command = ["forgetting", "--adapter", str(tiny_adapter), "--output", str(tmp_path / "out")]
    (tmp_path / "short.txt").write_text("Too short.")
    assert main([*command, "--text", str(tmp_path / "short.txt")]) == 2
    assert "at least 100" in capsys.readouterr().err
    (tmp_path / "long_test.csv").write_text("word " * 200 + ",a,b,c,d,A\n")
    assert main([*command, "--text", str(text), "--mmlu", str(tmp_path)]) == 2
    assert "long/0 is longer than the 256 tokens" in capsys.readouterr().err
    assert main([*command, "--text", str(text), "--mmlu", str(tmp_path / "short.txt")]) == 2
    assert "readable tar file" in capsys.readouterr().err


def test_an_adapter_without_an_encoder_is_measured_on_text_alone(
    language_folder: Path, text: Path, tmp_path: Path, capsys
) -> None:
    language = LanguageConfig(path=str(language_folder), dtype="float32")
    blocks, prompts = ExcitorConfig(layers=2, prompts=4, rank=4, gate_start=2.0), Prompts({"instructions": "plain"})
    build_model(language, [], blocks, prompts, DecodingConfig(), LoraConfig()).save_pretrained(tmp_path / "blind")
    command = ["forgetting", "--adapter", str(tmp_path / "blind"), "--text", str(text)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    (tmp_path / "x.jpg").write_bytes(jpeg())
    assert main([*command, "--output", str(tmp_path / "more"), "--image", str(tmp_path / "x.jpg")]) == 2
    assert "no encoder" in capsys.readouterr().err
