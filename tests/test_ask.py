"""Questions from shards, from a file and from a person get the same answers, by the same prompts."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

from excitor_mm.answer import Asked, answer, log_likelihoods
from excitor_mm.chat import Chat
from excitor_mm.cli import main
from excitor_mm.config import DecodingConfig, Prompts
from excitor_mm.data.index import ShardIndex, write_index, write_shard
from excitor_mm.data.pipeline import IGNORE, Example, collate
from excitor_mm.data.samples import Question, Sample
from excitor_mm.errors import AdapterError, DataError
from excitor_mm.model import ExcitorModel
from excitor_mm.queries import ask
from excitor_mm.templates import Turn
from tests.conftest import COLOURS, jpeg

TEMPLATES = {"vqa": "Look.\n{question}\nAnswer:", "scienceqa": "plain", "instructions": "alpaca"}
COUNT = 3


@pytest.fixture(scope="module")
def adapter(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide open gates, prompts for questions."""
    model = ExcitorModel.from_pretrained(tiny_adapter, device="cpu")
    model.config = dataclasses.replace(
        model.config, prompts=Prompts(TEMPLATES), decoding=DecodingConfig(beams=1, max_new_tokens=6)
    )
    folder = tmp_path_factory.mktemp("asked") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(adapter: Path) -> ExcitorModel:
    return ExcitorModel.from_pretrained(adapter, device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two questions on each of three pictures, as shards, as VQAv2's file, and as rows."""
    samples, asked = [], []
    for number in range(COUNT):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(COLOURS[number]))
        texts = {10 * number + n: f"What is number {n}?" for n in range(2)}
        questions = tuple(Question(i, text, ("yes",)) for i, text in texts.items())
        samples.append(Sample(f"{number:03d}", number, jpeg(COLOURS[number]), (), questions))
        asked += [{"question_id": i, "image_id": number, "question": text} for i, text in texts.items()]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_index(shards, ShardIndex("t", [write_shard(shards / "t-000000.tar", samples)]))
    (tmp_path / "vqa.json").write_text(json.dumps({"questions": asked}))
    rows = [{**row, "image": f"{row['image_id']}.jpg"} for row in asked]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answers(path: Path) -> dict[int, str]:
    return {row["question_id"]: row["answer"] for row in map(json.loads, path.read_text().splitlines())}


def test_shards_files_and_persons_ask_the_same(adapter: Path, model: ExcitorModel, files: Path, capsys) -> None:
    common = ["--adapter", str(adapter), "--device", "cpu", "--batch-size", "4"]
    shards = ["predict", "--shards", str(files / "shards"), "--task", "vqa", "--workers", "0", *common]
    assert main([*shards, "--output", str(files / "a.jsonl")]) == 0
    expected = answers(files / "a.jsonl")
    assert len(expected) == 2 * COUNT
    assert len(set(expected.values())) > 1  # the pictures are looked at
    for name in ("vqa.json", "rows.jsonl"):
        output = str(files / f"{name}.out.jsonl")
        command = ["ask", "--questions", str(files / name), "--images", str(files), "--output", output, *common]
        assert main(command) == 0
        assert answers(Path(output)) == expected
    for number in range(COUNT):
        chat = Chat(model, files / f"{number}.jpg")
        assert chat.say("What is number 0?").text == expected[10 * number]
    assert main([*shards, "--output", str(files / "other.jsonl"), "--other-images"]) == 0
    assert answers(files / "other.jsonl") != expected


def test_choices_are_scored_as_if_each_were_alone(model: ExcitorModel) -> None:
    """Batched over choices and questions; the sum over the answer's tokens, from transformers' own logits."""
    tasks = model.task_format("scienceqa")
    questions = [ask(tasks, f"Which {n}?", choices=("sky", "blood", "grass")[: 3 - n]) for n in range(2)]
    found = answer(model, tasks, [Asked(question, None) for question in questions])
    for question, said in zip(questions, found, strict=True):
        assert said.text == question.choices[max(range(len(question.choices)), key=said.log_likelihoods.__getitem__)]
        for choice, score in zip(question.choices, said.log_likelihoods, strict=True):
            text = tasks.render(model.processor.tokenizer, (question.turns[0]._replace(answer=choice),))
            ids = torch.tensor([text.ids])
            with torch.no_grad():
                logits = model.language(ids).logits[0].log_softmax(-1)
            start, end = text.answers[0]
            expected = sum(logits[place - 1, text.ids[place]].item() for place in range(start, end))
            assert score == pytest.approx(expected, abs=1e-3)


def test_turns_are_remembered_and_the_oldest_forgotten(model: ExcitorModel, capsys) -> None:
    chat = Chat(model, None)
    prompts = []
    for number in range(12):
        chat.say(f"Question {number}, and some more words?")
        turns = (*chat.history[:-1], chat.history[-1]._replace(answer=None)) if chat.history else ()
        prompts.append(len(chat.history))
        if turns:
            assert len(chat.tasks.render(model.processor.tokenizer, turns, room=6).ids) <= 250
    assert "forgotten" in capsys.readouterr().err
    assert max(prompts) < 12
    with pytest.raises(DataError, match="shorten the question"):
        chat.say("word " * 300)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "b", "c"], "expected [IMAGE] QUESTION"),
        (["What?", "--output", "x.jsonl"], "go together"),
        (["photo.jpg", "What?", "--base"], "sees no image"),
        (["no-such.jpg", "What?"], "no-such.jpg cannot be read"),
        ([" "], "question is empty"),
        (["What?", "--task", "caption"], "trained for vqa, scienceqa, instructions, not for caption"),
        (["What?", "--choices", *map(str, range(27))], "27 choices, at most 26"),
    ],
)
def test_bad_questions_end_with_two(adapter: Path, words: list[str], sentence: str, capsys) -> None:
    assert main(["ask", *words, "--adapter", str(adapter), "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_captioner_is_not_asked(adapter: Path) -> None:
    captioner = ExcitorModel.from_pretrained(adapter, device="cpu")
    captioner.config = dataclasses.replace(captioner.config, prompts=Prompts({"caption": "A picture:"}))
    with pytest.raises(AdapterError, match="trained for caption, not for vqa"):
        Chat(captioner, jpeg())


def test_a_pipe_of_lines_is_a_conversation(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\n\nWhere?\n"))
    assert main(["ask", "--repl", "--adapter", str(adapter), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.fixture
def describing(adapter: Path) -> ExcitorModel:
    """Asks its questions with its own caption."""
    model = ExcitorModel.from_pretrained(adapter, device="cpu")
    templates = {"vqa": "{question}\nPicture: {caption}\nAnswer:", "caption": "A picture:"}
    model.config = dataclasses.replace(model.config, prompts=Prompts(templates))
    return model


def test_a_question_is_asked_with_the_models_own_caption(describing: ExcitorModel, files: Path) -> None:
    """The answer is that to the same text written out; the caption is remembered, and stands before every choice."""
    model, tokenizer = describing, describing.processor.tokenizer
    caption = model.caption(files / "0.jpg")
    chat = Chat(model, files / "0.jpg", task="vqa")
    said = chat.say("What is it?")
    plain = Chat(model, files / "0.jpg", task="vqa", template="{question}")
    assert said.caption == caption
    assert said.text == plain.say(f"What is it?\nPicture: {caption}\nAnswer:").text
    (turn,) = chat.history
    assert (turn.answer, turn.caption) == (said.text, caption)
    found = chat.say("Is it blue?", choices=("yes", "no"))
    text = chat.tasks.render(tokenizer, (turn, Turn("Is it blue?", answer=found.text, caption=caption)))
    batch = collate([Example("", text, chat.pixels)], tokenizer.pad_token_id)
    batch.inputs["labels"][:, : text.answers[-1][0]] = IGNORE
    assert (chat.history[-1].answer, chat.history[-1].caption) == (found.text, caption)
    assert max(found.log_likelihoods) == pytest.approx(log_likelihoods(model, **batch.inputs).item(), abs=1e-3)
    without = Chat(model, None, task="vqa").say("What is it?")
    assert without.caption == ""


def test_json_tells_the_caption_beside_the_answer(describing: ExcitorModel, files: Path, capsys) -> None:
    photo, adapter = str(files / "0.jpg"), files / "describing"
    describing.save_pretrained(adapter)
    assert main(["ask", photo, "What is it?", "--adapter", str(adapter), "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    said = Chat(describing, photo).say("What is it?")
    assert facts == {"answer": said.text, "caption": said.caption}
    assert said.caption


def test_an_image_is_encoded_and_captioned_once_for_all_questions_about_it(
    describing: ExcitorModel, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = describing.task_format("vqa")
    pixels = [describing.processor.pixels(files / f"{number}.jpg") for number in range(2)]
    asked = [Asked(ask(tasks, f"What is number {n}?"), pixels[n // 3]) for n in range(6)]
    rows: list[int] = []
    images: list[int] = []
    generate, encode = describing.generate, describing.tower.encode

    def counted(input_ids: torch.Tensor, *args, **options):
        rows.append(len(input_ids))
        return generate(input_ids, *args, **options)

    def seen(pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        images.append(len(pixels[0]))
        return encode(pixels)

    monkeypatch.setattr(describing, "generate", counted)
    monkeypatch.setattr(describing.tower, "encode", seen)
    found = answer(describing, tasks, asked)
    assert (rows, images) == ([2, 6], [2])
    assert [said.caption for said in found] == [describing.caption(files / f"{n // 3}.jpg") for n in range(6)]


def test_a_prompt_needs_no_adapter_that_captions(model: ExcitorModel, files: Path) -> None:
    inputs = model.processor(images=[files / "0.jpg", None], text="Look. What is it?\nAnswer:")
    assert inputs["image_mask"].tolist() == [True, False]
    with pytest.raises(AdapterError, match="not for caption"):
        model.processor(images=[files / "0.jpg"])
