"""What samples teach: every question in turn, answers by frequency, loss on answers alone, with and without images."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from excitor_mm.batches import FURTHER_BATCH, Windows, by_length, mixed_order
from excitor_mm.config import DataConfig, PromptConfig, RunConfig, SourceConfig
from excitor_mm.data.index import ShardIndex, write_index, write_shard
from excitor_mm.data.pipeline import IGNORE, Example, ExampleMaker, collate
from excitor_mm.data.samples import BadSample, Dialogue, Question, Sample
from excitor_mm.data.scienceqa import Problem
from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.prompts import Rendered
from excitor_mm.templates import Turn
from tests.conftest import jpeg, make_shards

PROBLEM = Problem(
    "7", "Which is red?", ("sky", "blood"), 1, "Look.", "Lecture", "Solution", "natural science", 3, None, "train"
)
DIALOGUE = Dialogue((Turn("Hello", answer="Hi."), Turn("Name a colour", "red or green", answer="Red")), "Be brief.")
SAMPLES = {
    "caption": Sample("a", 1, jpeg(), ("A red square.", "Red.")),
    "vqa": Sample("b", 2, jpeg(), (), tuple(Question(n, f"Question {n}?", ("yes",) * 9 + ("no",)) for n in range(3))),
    "scienceqa": Sample("c", "7", None, problem=PROBLEM),
    "instructions": Sample("d", "x", None, dialogue=DIALOGUE),
}
TEMPLATES = {"caption": "palette", "vqa": "palette-answer", "scienceqa": "plain", "instructions": "alpaca"}


@pytest.fixture
def config(run_config: RunConfig, tmp_path: Path) -> RunConfig:
    """A mixture of all tasks, eight samples each."""
    sources = []
    for task, sample in SAMPLES.items():
        folder = tmp_path / task
        folder.mkdir()
        same = [dataclasses.replace(sample, key=f"{n:012d}") for n in range(8)]
        write_index(folder, ShardIndex(task, [write_shard(folder / "t-000000.tar", same)]))
        sources.append(SourceConfig(str(folder), task, TEMPLATES[task], 1.0 + (task == "vqa")))
    data = DataConfig(train=sources, workers=0, shuffle_buffer=4)
    return dataclasses.replace(run_config, data=data, prompt=PromptConfig(palette_size=6))


@pytest.fixture
def model(config: RunConfig) -> ExcitorModel:
    torch.manual_seed(0)
    return build_for_training(config)


def make(model: ExcitorModel, task: str, sample: Sample, epoch: int = 0, draw: bool = True) -> Example:
    maker = ExampleMaker(
        model.processor.tokenizer, model.task_format(task), model.tower.transform(), 0, 10**8, draw=draw
    )
    return maker(sample, epoch)


def answers(model: ExcitorModel, example: Example) -> list[str]:
    decode = functools.partial(model.processor.tokenizer.decode, skip_special_tokens=True)
    return [decode(example.text.ids[start:end]).strip() for start, end in example.text.answers]


def test_every_task_is_learnt_from_its_answers_alone(model: ExcitorModel) -> None:
    expected = {"caption": ["A red square."], "vqa": ["yes"], "scienceqa": ["The answer is B."]}
    expected["instructions"] = ["Hi.", "Red"]
    for task, sample in SAMPLES.items():
        example = make(model, task, sample, draw=False)
        assert answers(model, example) == expected[task]
        labels = collate([example], 2).inputs["labels"][0]
        learnt = [place for start, end in example.text.answers for place in range(start, end)]
        assert (labels != IGNORE).nonzero()[:, 0].tolist() == learnt
        assert torch.equal(labels[learnt], torch.tensor(example.text.ids)[learnt])


def test_questions_come_in_turn_and_answers_by_frequency(model: ExcitorModel) -> None:
    sample = SAMPLES["vqa"]
    asked, said = Counter(), Counter()
    for epoch in range(300):
        example = make(model, "vqa", sample, epoch)
        text = model.processor.tokenizer.decode(example.text.ids)
        asked[next(q.question for q in sample.questions if q.question in text)] += 1
        said.update(answers(model, example))
    assert set(asked.values()) == {100}
    assert 0.85 < said["yes"] / 300 < 0.95


def test_a_text_beside_an_image_is_the_text_alone(model: ExcitorModel) -> None:
    """Losses add up: the image of one row reaches no other row, and zeros in place of an image reach nothing."""
    examples = [make(model, task, SAMPLES[task]) for task in ("vqa", "instructions", "scienceqa")]
    with torch.no_grad():
        together, count = model(**collate(examples, 2).inputs)
        alone = [model(**collate([example], 2).inputs) for example in examples]
    assert collate(examples, 2).inputs["image_mask"].tolist() == [True, False, False]
    assert collate(examples[1:], 2).inputs["pixel_values"] == []
    torch.testing.assert_close(together, sum(loss for loss, _ in alone), rtol=1e-5, atol=1e-4)
    assert count == sum(tokens for _, tokens in alone)


@pytest.mark.parametrize(
    ("task", "sample", "reason"),
    [
        ("vqa", Sample("k", 1, jpeg(), ("A caption.",)), "no vqa"),
        ("vqa", Sample("k", 1, jpeg(), (), (Question(1, "What?", (" ",)),)), "no answer"),
        ("caption", Sample("k", 1, None, ("A caption.",), dialogue=DIALOGUE), "no image"),
        ("instructions", Sample("k", 1, None, dialogue=Dialogue((Turn("word " * 300, answer="x"),))), "too long"),
        ("scienceqa", Sample("k", 1, None, dialogue=DIALOGUE), "no scienceqa"),
    ],
)
def test_samples_that_teach_nothing_are_told_apart(
    model: ExcitorModel, task: str, sample: Sample, reason: str
) -> None:
    with pytest.raises(BadSample) as caught:
        make(model, task, sample)
    assert caught.value.reason == reason


def test_a_mixture_keeps_its_shares_and_resumes_anywhere(config: RunConfig, model: ExcitorModel) -> None:
    accelerator = Accelerator(cpu=True)
    order = mixed_order([1, 2, 1, 1])
    taken = Counter(next(order) for _ in range(50))
    assert taken == {0: 10, 1: 20, 2: 10, 3: 10}
    whole = Windows(config, model, accelerator, start=0)
    expected = [whole.next().batches[0] for _ in range(12)]
    for start in (1, 7):
        again = Windows(config, model, accelerator, start)
        for batch in expected[start:]:
            found = again.next().batches[0]
            assert found.keys == batch.keys
            assert torch.equal(found.inputs["labels"], batch.inputs["labels"])
            assert found.inputs["image_mask"].any() == batch.inputs["image_mask"].any()


@pytest.mark.parametrize("lengths", [[30] * 8, [30, 31, 33], [9, 400, 12, 390, 11, 10], [500, *[20] * 31], [7]])
def test_grouping_by_length_keeps_every_example_and_never_costs_more(lengths: list[int]) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(group) + FURTHER_BATCH for group in groups)

    examples = [Example(str(n), Rendered(list(range(length)), [], 0), None) for n, length in enumerate(lengths)]
    groups = by_length(examples)
    assert sorted(example.key for group in groups for example in group) == sorted(e.key for e in examples)
    found = [[len(example.text.ids) for example in group] for group in groups]
    cuts = [[lengths], *([sorted(lengths)[:i], sorted(lengths)[i:]] for i in range(1, len(lengths)))]
    assert cost(found) <= min(map(cost, cuts))
    if len(groups) == 1:
        assert groups[0] == examples  # in their order: a step that needs no grouping is the same to the bit


def test_a_step_of_long_and_short_rows_learns_the_same_in_several_batches(
    config: RunConfig, model: ExcitorModel, tmp_path: Path
) -> None:
    rows = [Dialogue((Turn("word " * (1 + n % 2 * 24), answer=f"Answer {n}."),)) for n in range(8)]
    samples = [Sample(f"{n:012d}", n, None, dialogue=row) for n, row in enumerate(rows)]
    (tmp_path / "rows").mkdir()
    write_index(tmp_path / "rows", ShardIndex("rows", [write_shard(tmp_path / "rows" / "t-000000.tar", samples)]))
    data = DataConfig(train=[SourceConfig(str(tmp_path / "rows"), "instructions", "plain")], workers=0)
    config = dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, batch_size=8))
    apart = Windows(config, model, Accelerator(cpu=True), start=0).next()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, shard_frozen=True))
    together = Windows(config, model, Accelerator(cpu=True), start=0).next()
    assert (len(apart.batches), len(together.batches)) == (2, 1)
    assert apart.tokens == together.tokens
    size = sum(batch.inputs["labels"].numel() for batch in apart.batches)
    assert size + FURTHER_BATCH < together.batches[0].inputs["labels"].numel()
    gradients = []
    for window in (apart, together):
        model.zero_grad()
        for batch in window.batches:
            model(**batch.inputs)[0].backward()
        gradients.append([p.grad.clone() for p in model.trainables().values() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_template_a_task(config: RunConfig, tmp_path: Path) -> None:
    assert build_for_training(config).config.prompts.templates == TEMPLATES
    twice = [SourceConfig("a", "vqa", "plain"), SourceConfig("b", "vqa", "short-answer")]
    with pytest.raises(ConfigError, match="has the templates"):
        dataclasses.replace(config, data=DataConfig(train=twice)).templates()


def test_an_adapter_goes_on_with_another_task(config: RunConfig, tmp_path: Path) -> None:
    """Text first, images after it: the weights, the palette and the first tasks' prompts are kept."""
    torch.manual_seed(1)
    data = dataclasses.replace(config.data, train=list(config.data.train)[::-1])
    first = build_for_training(dataclasses.replace(config, data=data))
    first.save_pretrained(tmp_path / "first")
    shards = make_shards(tmp_path / "captions", [3])
    later = dataclasses.replace(
        config,
        data=DataConfig(train=str(shards), workers=0),
        prompt=PromptConfig(template="palette", palette_size=2),
        train=dataclasses.replace(config.train, start=str(tmp_path / "first")),
    )
    second = build_for_training(later)
    assert second.config.prompts == first.config.prompts
    assert next(iter(first.config.prompts.templates)) == "instructions"
    assert next(iter(second.config.prompts.templates)) == "caption"  # the later run's own: what `predict` takes
    for name, tensor in first.trainables().items():
        assert torch.equal(second.trainables()[name], tensor)
    with pytest.raises(ConfigError, match="another excitor"):
        build_for_training(dataclasses.replace(later, excitor=dataclasses.replace(later.excitor, prompts=5)))


def test_training_asks_with_the_captions_of_the_sample(config: RunConfig, tmp_path: Path) -> None:
    """In turn; learnt is the answer alone. The palette holds words of the tasks that show it."""
    sample = dataclasses.replace(SAMPLES["vqa"], captions=("A red square.", "Something red."))
    folder = tmp_path / "described"
    folder.mkdir()
    write_index(folder, ShardIndex("vqa", [write_shard(folder / "t-000000.tar", [sample])]))
    sources = [SourceConfig(str(folder), "caption", "palette"), SourceConfig(str(folder), "vqa", "caption-answer")]
    data = dataclasses.replace(config.data, train=sources)
    model = build_for_training(dataclasses.replace(config, data=data, prompt=PromptConfig(palette_size=5)))
    assert set(model.config.prompts.palette) == {"red", "square", "something"}
    asked, learnt = set(), set()
    for epoch in range(24):
        example = make(model, "vqa", sample, epoch)
        ((start, _),) = example.text.answers
        prompt = model.processor.tokenizer.decode(example.text.ids[:start], skip_special_tokens=True)
        _, caption, lead = prompt.split("\n")
        asked.add(caption)
        learnt |= set(answers(model, example))
        assert lead == "Answer:"
    assert asked == {f"Picture: {caption}" for caption in sample.captions}
    assert learnt == {"yes", "no"}
    with pytest.raises(BadSample, match="no caption to ask with"):
        make(model, "vqa", SAMPLES["vqa"])


@pytest.mark.parametrize("weight", [8.0, 0.1])
def test_the_palette_takes_words_as_often_as_training_takes_their_source(
    config: RunConfig, tmp_path: Path, weight: float
) -> None:
    """Not as often as they stand in it: a large source of a small weight would crowd the others' words out."""
    folders = {"few": ("A red square.", 2), "many": ("A blue circle.", 20)}
    for name, (caption, number) in folders.items():
        (tmp_path / name).mkdir()
        samples = [Sample(f"{name}{index}", index, jpeg(), (caption,)) for index in range(number)]
        write_index(tmp_path / name, ShardIndex(name, [write_shard(tmp_path / name / "t-000000.tar", samples)]))
    sources = [SourceConfig(str(tmp_path / "few"), weight=weight), SourceConfig(str(tmp_path / "many"))]
    data = dataclasses.replace(config.data, train=sources)
    prompt = PromptConfig(template="palette", palette_size=2)
    model = build_for_training(dataclasses.replace(config, data=data, prompt=prompt))
    assert set(model.config.prompts.palette) == ({"red", "square"} if weight > 1 else {"blue", "circle"})


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_a_template_with_a_caption_is_for_questions_beside_captions(config: RunConfig, task: str) -> None:
    source = next(source for source in config.training_sources() if source.task == task)
    data = dataclasses.replace(config.data, train=[dataclasses.replace(source, template="caption-answer")])
    with pytest.raises(ConfigError, match="for vqa beside caption alone"):
        build_for_training(dataclasses.replace(config, data=data))
