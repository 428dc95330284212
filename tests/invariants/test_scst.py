"""Self-critical training follows REINFORCE's gradient, and is one training however it is cut into pieces."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from excitor_mm.adapter import TENSORS, load_config
from excitor_mm.cache_features import cache_features
from excitor_mm.config import DecodingConfig, PromptConfig, RunConfig
from excitor_mm.data.pipeline import IGNORE, Batch
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.metrics.reward import closed
from excitor_mm.model import ExcitorModel
from excitor_mm.prepare import build_for_training
from excitor_mm.scst import Draw, SelfCritic, above_the_others, check_scst
from excitor_mm.step import make_scaler, train_step
from excitor_mm.train import make_optimizer, train
from excitor_mm.vision.tower import VisionTower
from tests.conftest import make_shards, teach_captions, tiny_run, write_language, write_poisoned
from tests.invariants.test_training import batches, change


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, encoder_file: Path) -> RunConfig:
    """A model that writes captions of squares, of any colour: it can speak, and has not learnt to look."""
    folder = tmp_path_factory.mktemp("first")
    language = teach_captions(write_language(folder / "language"))
    config = tiny_run(language, encoder_file, make_shards(folder / "shards", [5, 3]), folder / "run")
    config = dataclasses.replace(config, prompt=PromptConfig(template="Caption:"))
    torch.manual_seed(0)
    build_for_training(config).save_pretrained(folder / "start")
    return change(config, start=str(folder / "start"))


@pytest.fixture
def config(first: RunConfig, tmp_path: Path) -> RunConfig:
    """The second stage from there."""
    return change(first, output=str(tmp_path / "run"), stage="scst", scst_samples=3)


def critic_of(config: RunConfig) -> tuple[ExcitorModel, SelfCritic]:
    model = build_for_training(config)
    return model, SelfCritic(config, model, Accelerator(cpu=True))


def answers(batch: Batch) -> list[list[int]]:
    """The tokens of each caption that is learnt: those of each branch of each row."""
    rows = zip(batch.inputs["labels"], batch.inputs["branches"], strict=True)
    return [
        labels[(labels != IGNORE) & (branches == branch)].tolist()
        for labels, branches in rows
        for branch in range(1, int(branches.max()) + 1)
    ]


def said(model: ExcitorModel, ids: list[int]) -> str:
    """What the reward reads of some tokens."""
    end = model.processor.tokenizer.eos_token_id
    return closed(model.processor.batch_decode([ids])[0], ids[-1] == end)


def gradients(model: ExcitorModel, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.trainables().values()))
    return dict(zip(model.trainables(), found, strict=True))


@pytest.mark.parametrize(("baseline", "temperature"), [("samples", 1.0), ("samples", 0.4), ("greedy", 1.0)])
def test_the_gradient_is_reinforces(config: RunConfig, baseline: str, temperature: float) -> None:
    """Literally: one caption at a time through the whole model, its log-likelihood, its reward, its baseline."""
    config = change(config, scst_baseline=baseline, scst_temperature=temperature)
    model, critic = critic_of(config)
    model.double()
    (window,) = batches(config, model, 8)
    pixels = [part.double() for part in window.inputs["pixel_values"]]
    window = window._replace(inputs={**window.inputs, "pixel_values": pixels})
    drawn = critic.draw([window]).batches[0]
    found = gradients(model, model(**drawn.inputs)[0] / critic.count([window]))

    prompt = model.processor.caption_ids()
    total = torch.zeros((), dtype=torch.float64)
    differing = 0
    for image in range(8):
        references = [[closed(text) for text in window.references[image]]]
        shown = {"pixel_values": [part[[image]] for part in pixels]}
        captions = answers(drawn)[3 * image : 3 * image + 3]
        rewards = [critic.reward.score([said(model, ids)], references)[0] for ids in captions]
        greedily = 0.0
        if baseline == "greedy":
            first = torch.tensor([prompt])
            decoding = DecodingConfig(beams=1, max_new_tokens=12)
            ids = model.generate(first, torch.ones_like(first), **shown, decoding=decoding)[0].tolist()
            greedily = critic.reward.score([said(model, ids)], references)[0]
        for number, ids in enumerate(captions):
            logits = model.language(
                torch.tensor([[*prompt, *ids]]), visual_prompts=model.visual_prompts(**shown)[0]
            ).logits[0, len(prompt) - 1 : -1]
            likelihood = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
            others = [reward for other, reward in enumerate(rewards) if other != number]
            above = rewards[number] - (greedily if baseline == "greedy" else sum(others) / 2)
            total = total + above * likelihood
            differing += above != 0
    expected = gradients(model, -total / 24)
    assert differing > 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_tokens_are_drawn_at_the_temperature(temperature: float) -> None:
    """As often as softmax(scores / temperature) says; the row behind those of the samples takes the likeliest."""
    draws = 20_000
    scores = torch.tensor([1.5, 2.0, 1.0, 0.0, -1.0]).repeat(draws + 1, 1)
    left = Draw([3], draws, temperature, torch.device("cpu"))(torch.empty(0), scores.clone()).softmax(-1)
    assert torch.equal(left.amax(-1), torch.ones(draws + 1))
    expected = (scores[0] / temperature).softmax(0)
    found = left[:draws].argmax(1).bincount(minlength=5) / draws
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()
    assert left[draws].argmax() == 1


def test_nothing_else_shapes_what_is_drawn(config: RunConfig) -> None:
    """Second words of 2,000 captions of an image, as often as the model says: no top_k, top_p or default between."""
    draws, temperature = 2000, 3.0
    model, critic = critic_of(change(config, scst_samples=draws, scst_temperature=temperature))
    (window,) = batches(config, model, 8)
    one = Batch(window.keys[:1], window.row(0), references=window.references[:1], seeds=window.seeds[:1])
    captions = answers(critic.draw([one]).batches[0])
    first = Counter(ids[0] for ids in captions).most_common(1)[0][0]
    seconds = torch.tensor([ids[1] for ids in captions if ids[0] == first])
    text = torch.tensor([[*model.processor.caption_ids(), first]])
    with torch.no_grad():
        visual = model.visual_prompts(one.inputs["pixel_values"])[0]
        expected = (model.language(text, visual_prompts=visual).logits[0, -1] / temperature).softmax(-1)
    found = seconds.bincount(minlength=len(expected)) / len(seconds)
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / len(seconds)).sqrt() + 2e-3).all()
    assert (found > 0).sum() > 50  # upstream's own top_k


def test_equal_rewards_teach_nothing(config: RunConfig) -> None:
    model, critic = critic_of(config)
    window = [batch._replace(references=(("zebras",),) * 8) for batch in batches(config, model, 8)]
    drawn = critic.draw(window)
    assert not any(gradient.any() for gradient in gradients(model, model(**drawn.batches[0].inputs)[0]).values())
    assert not above_the_others(torch.full((1, 7), 0.1)).any()


def test_the_expected_reward_rises(config: RunConfig) -> None:
    """Of 64 captions an image, drawn before and after with the same noise."""
    longer = change(config, steps=20, scst_samples=16, warmup_steps=2)
    before = Path(config.train.start or "")
    rewards = []
    for start in (before, train(longer)):
        model, critic = critic_of(change(config, start=str(start), scst_samples=64))
        rewards.append(critic.draw(batches(config, model, 8)).facts["reward"])
    assert rewards[1] > 1.25 * rewards[0]
    assert load_config(Path(longer.train.output) / "best").training["stage"] == "cross-entropy, then scst"
    assert load_config(before).training["stage"] == "cross-entropy"


def test_draws_depend_on_the_visit_and_not_on_the_batch(config: RunConfig) -> None:
    model, critic = critic_of(config)
    together, apart = critic.draw(batches(config, model, 8)), critic.draw(batches(config, model, 3))
    expected = answers(together.batches[0])
    assert [row for batch in apart.batches for row in answers(batch)] == expected
    assert apart.facts == pytest.approx(together.facts)
    assert len({tuple(row) for row in expected}) > 6  # an image's captions differ
    later = [batch._replace(seeds=tuple(seed + 1 for seed in batch.seeds)) for batch in batches(config, model, 8)]
    assert answers(critic.draw(later).batches[0]) != expected


def test_accumulation_changes_nothing(config: RunConfig) -> None:
    figures = []
    for size in (8, 4):
        model, critic = critic_of(config)
        window = batches(config, model, size)
        drawn, count = critic.draw(window), critic.count(window)
        assert count == 24
        scaler = make_scaler(config, model.device)
        optimizer = make_optimizer(model, config)
        figures.append(train_step(model, optimizer, drawn.batches, count, critic.accelerator, config, scaler))
    assert figures[1].loss == pytest.approx(figures[0].loss, rel=1e-4, abs=1e-6)
    assert figures[1].norm == pytest.approx(figures[0].norm, rel=1e-4)
    assert figures[0].norm > 0


def test_interrupted_and_resumed_equals_uninterrupted(config: RunConfig, tmp_path: Path) -> None:
    whole = change(config, save_every=2, log_every=1, batch_size=3)
    train(whole)
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")  # as if killed in step 3
    train(change(whole, output=str(tmp_path / "cut")), resume=True)
    expected, found = (load_file(tmp_path / run / "last" / TENSORS) for run in ("run", "cut"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("run", "cut")]
    for left, right in zip(*[map(json.loads, log) for log in logs], strict=True):
        assert left.get("reward") == right.get("reward")
    row = json.loads(logs[0][0])
    assert {"reward", "baseline", "drawn_tokens", "drawn_distinct", "drawn_finished"} <= row.keys()
    assert row["reward"] == pytest.approx(row["baseline"])  # summed over an image, the others' mean is the mean
    assert 0 < row["drawn_distinct"] <= 1


def test_an_image_is_encoded_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw captions and to learn from them; never, with cached tokens."""
    encode, images = VisionTower.encode, []

    def counted(tower: VisionTower, pixels: list[Tensor]) -> list[Tensor]:
        images.append(len(pixels[0]))
        return encode(tower, pixels)

    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, features="cache"))
    cache_features(cached, name="cache")
    monkeypatch.setattr(VisionTower, "encode", counted)
    train(change(config, steps=2))
    assert images == [8, 8]
    train(change(cached, steps=2), overwrite=True)
    assert images == [8, 8]


def test_captions_that_never_end(config: RunConfig) -> None:
    model, critic = critic_of(dataclasses.replace(config, decoding=DecodingConfig(beams=1, max_new_tokens=2)))
    drawn = critic.draw(batches(config, model, 8))
    assert drawn.facts["drawn_finished"] == 0
    assert drawn.facts["drawn_tokens"] == 2
    assert drawn.tokens == 48
    assert torch.isfinite(drawn.batches[0].inputs["weights"]).all()


def test_a_pass_without_samples_takes_part(config: RunConfig) -> None:
    """As when all samples of a rank's step are bad: nothing is drawn, and nothing is learnt."""
    model, critic = critic_of(config)
    (batch,) = batches(config, model, 8)
    silent = batch._replace(inputs={**batch.inputs, "labels": torch.full_like(batch.inputs["labels"], IGNORE)})
    window = [batch, silent._replace(references=((),) * 8)]
    drawn = critic.draw(window)
    assert critic.count(window) == critic.count([batch]) == 24
    assert drawn.facts == critic.draw([batch]).facts
    assert model(**drawn.batches[1].inputs)[0] == 0


def test_images_whose_captions_are_no_numbers_are_named(config: RunConfig, tmp_path: Path) -> None:
    """A word that is not a number to the language model is drawn of some images."""
    folder = write_poisoned(Path(config.language.path), tmp_path / "poisoned")
    poisoned = dataclasses.replace(config, language=dataclasses.replace(config.language, path=str(folder)))
    build_for_training(change(poisoned, start=None)).save_pretrained(tmp_path / "start")
    with pytest.raises(DataError, match=r"The loss is nan \(gradient nan\) on \['0000") as caught:
        train(change(poisoned, start=str(tmp_path / "start")))
    assert 0 < str(caught.value).count("'0000") < 8


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"start": None}, "name it as train.start"),
        ({"scst_samples": 1}, "take train.scst_baseline greedy"),
        ({"label_smoothing": 0.1}, "set it to 0"),
        ({"answers": 5}, "set it to 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(config: RunConfig, settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(change(config, **settings))


def test_only_captions_have_rewards(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="data.train is for vqa"):
        check_scst(dataclasses.replace(config, data=dataclasses.replace(config.data, task="vqa")))
