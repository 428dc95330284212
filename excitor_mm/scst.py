"""Self-critical training: the model draws captions, and each is learnt as far as CIDEr puts it above a baseline.

The gradient of the expected reward is REINFORCE's (Rennie et al. 2017, arXiv 1612.00563), w ~ p,
p = softmax(logits / temperature):

    grad E[r(w)] = E[(r(w) - b) grad log p(w)]

with b the mean reward of the image's other drawn captions (Luo 2020, arXiv 2003.09971), or that of its greedy caption
(Rennie et al.). In: batches of images with their captions. Out: batches of drawn captions with the weights r - b,
whose weighted cross entropy (`ExcitorModel.forward`), divided by their number, has minus this gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from excitor_mm.branches import share_prompt
from excitor_mm.config import DecodingConfig, RunConfig
from excitor_mm.data.order import stable_hash
from excitor_mm.data.pipeline import Batch, Example, collate
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.errors import ConfigError
from excitor_mm.metrics.reward import CiderReward, closed
from excitor_mm.model import ExcitorModel
from excitor_mm.parallel import whole
from excitor_mm.prompts import Rendered


class Drawn(NamedTuple):
    """A window of batches with drawn captions in place of people's."""

    batches: list[Batch]
    tokens: int
    """Of the drawn captions, over all ranks."""
    facts: dict[str, float]
    """Of all drawn captions on all ranks: mean reward and baseline (CIDEr x100, see `metrics.reward`), mean length in
    tokens, the share of an image's captions that differ, and the share that ended by themselves."""


class SelfCritic:
    """Draws captions and weighs them.

    Args:
        config: of the run; its training captions give CIDEr's word weights.
        model: draws the captions as it stands at each call.
        accelerator: of the run.

    Raises:
        DataError: training shards that give no rewards.
    """

    def __init__(self, config: RunConfig, model: ExcitorModel, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self.samples, self.greedy = config.train.scst_samples, config.train.scst_baseline == "greedy"
        self.temperature = config.train.scst_temperature
        self.decoding = DecodingConfig(beams=1, max_new_tokens=config.decoding.max_new_tokens)
        self.reward = CiderReward([closed(text) for text in texts] for texts in _training_captions(config))

    def count(self, window: Sequence[Batch]) -> int:
        """How many captions `draw` will draw, on this rank."""
        return self.samples * sum(bool(texts) for batch in window for texts in batch.references)

    def draw(self, window: Sequence[Batch]) -> Drawn:
        """Replace the captions of a window; all ranks take part together.

        The draws depend on the model and on the seed of each example's visit, not on what shares a batch with it.
        """
        with whole(self.model):
            batches, sums = zip(*map(self._draw, window), strict=True)
        total = self.accelerator.reduce(
            torch.stack(sums).sum(0).to(self.accelerator.device), reduction="sum"
        ).tolist()
        captions, reward, weight, tokens, different, finished = total
        facts = {
            "reward": 100 * reward / captions,
            "baseline": 100 * (reward - weight) / captions,
            "drawn_tokens": tokens / captions,
            "drawn_distinct": different / captions,
            "drawn_finished": finished / captions,
        }
        return Drawn(list(batches), int(tokens), facts)

    def _draw(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The drawn captions of a batch, and their number and the sums of what `Drawn` averages, float64[6]."""
        if not any(batch.references):  # it only takes part in what the ranks do together
            return batch, torch.zeros(6, dtype=torch.float64)
        pixels = [part.to(self.model.device) for part in batch.inputs["pixel_values"]]
        shown = {"pixel_values": self.model.tower.tokens(pixels), "image_mask": batch.inputs["image_mask"]}
        written = self._write(shown, batch.seeds)
        rewards = torch.stack([self._score(*each) for each in zip(written, batch.references, strict=True)])
        drawn = rewards[:, : self.samples]
        weights = drawn - rewards[:, self.samples :] if self.greedy else above_the_others(drawn)

        prompt, tokenizer = self.model.processor.caption_ids(), self.model.processor.tokenizer
        answers = [captions[: self.samples] for captions in written]
        texts = [
            share_prompt([Rendered(prompt + ids, [(len(prompt), len(prompt + ids))], cut=0) for ids in captions])
            for captions in answers
        ]
        learnt = collate(
            [Example(*each, None) for each in zip(batch.keys, texts, strict=True)], tokenizer.pad_token_id
        )
        factors = torch.zeros(learnt.inputs["labels"].shape)
        for row, text, each in zip(factors, texts, weights.tolist(), strict=True):
            for (start, end), weight in zip(text.answers, each, strict=True):
                row[start:end] = weight
        inputs = {**learnt.inputs, **shown, "weights": factors, "temperature": self.temperature}
        flat = [ids for captions in answers for ids in captions]
        lengths, ended = map(len, flat), (ids[-1] == tokenizer.eos_token_id for ids in flat)
        different = sum(len(set(map(tuple, captions))) for captions in answers)
        sums = [len(flat), drawn.sum(), weights.sum(), sum(lengths), different, sum(ended)]
        return learnt._replace(inputs=inputs), torch.tensor(sums, dtype=torch.float64)

    def _write(self, shown: dict[str, Any], seeds: Sequence[int]) -> list[list[list[int]]]:
        """Of each image the tokens of its drawn captions, and of the greedy one where that is the baseline.

        The end token is included.
        """
        processor = self.model.processor
        end = processor.tokenizer.eos_token_id
        each = self.samples + self.greedy
        ids = self.model.generate(
            **processor.pad([processor.caption_ids()] * len(seeds)),
            **shown,
            decoding=self.decoding,
            do_sample=True,
            num_return_sequences=each,
            logits_processor=LogitsProcessorList([Draw(seeds, self.samples, self.temperature, self.model.device)]),
            eos_token_id=end,
        ).tolist()
        ended = [row[: row.index(end) + 1] if end in row else row for row in ids]
        return [ended[start : start + each] for start in range(0, len(ended), each)]

    def _score(self, answers: list[list[int]], references: Sequence[str]) -> Tensor:
        """float64[number of answers], the reward of each among the references of its image."""
        processor = self.model.processor
        captions = [
            closed(text, finished=answer[-1] == processor.tokenizer.eos_token_id)
            for text, answer in zip(processor.batch_decode(answers), answers, strict=True)
        ]
        right = [closed(text) for text in references]
        return torch.tensor(self.reward.score(captions, [right] * len(captions)), dtype=torch.float64)


def above_the_others(rewards: Tensor) -> Tensor:
    """How far each reward lies above the mean of the others in its row, float[B, n] -> float[B, n].

    As a sum of differences, so that equal rewards give exact zeros, which Adam does not enlarge.
    """
    return (rewards[:, :, None] - rewards[:, None]).sum(-1) / (rewards.shape[1] - 1)


class Draw(LogitsProcessor):
    """Leaves one token to each row: drawn from softmax(scores / temperature), or the likeliest.

    Each image has a generator of its own, so its captions do not depend on the batch.

    Args:
        seeds: of each image's visit.
        samples: the first rows of each image, which draw; rows behind them take the likeliest.
        temperature: of the draws.
        device: of the logits.
    """

    def __init__(self, seeds: Sequence[int], samples: int, temperature: float, device: torch.device) -> None:
        self.samples, self.temperature = samples, temperature
        self.generators = [torch.Generator(device).manual_seed(stable_hash(seed, "captions")) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """float32[images x rows of each, vocabulary] -> the same, minus infinity but for one token a row."""
        chosen = scores.argmax(dim=-1, keepdim=True)
        images = zip(self.generators, *(part.chunk(len(self.generators)) for part in (scores, chosen)), strict=True)
        for generator, rows, tokens in images:
            below = torch.softmax(rows[: self.samples] / self.temperature, dim=-1).cumsum(dim=-1)
            height = torch.rand(self.samples, 1, generator=generator, device=scores.device) * below[:, -1:]
            drawn = torch.searchsorted(below, height, right=True)
            tokens[: self.samples] = drawn.clamp_(max=scores.shape[-1] - 1)  # a height may round to the whole
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _training_captions(config: RunConfig) -> Iterator[Sequence[str]]:
    for source in config.training_sources():
        for shard in list_shards(source.shards):
            for sample in read_shard(shard, lambda _: None):  # what cannot be read is counted later, by the stream
                if sample.captions:
                    yield sample.captions


def check_scst(config: RunConfig) -> None:
    """Refuse what self-critical training cannot do.

    Raises:
        ConfigError: no adapter to start from, other tasks than captions, a single sample, label smoothing, or
            several of people's captions.
    """
    settings = config.train
    if settings.stage != "scst":
        return
    if settings.start is None:
        raise ConfigError("train.stage is scst, which goes on from a trained captioner: name it as train.start.")
    if others := {source.task for source in config.training_sources()} - {"caption"}:
        raise ConfigError(
            f"train.stage is scst, but data.train is for {', '.join(sorted(others))}: only captions have rewards."
        )
    if settings.scst_samples < 2 and settings.scst_baseline == "samples":
        raise ConfigError(
            "train.scst_samples is 1, but the baseline is the mean of the others: draw more, or take "
            "train.scst_baseline greedy."
        )
    if settings.label_smoothing:
        raise ConfigError(
            f"train.label_smoothing is {settings.label_smoothing}, which drawn captions cannot have: set it to 0."
        )
    if settings.answers > 1:
        raise ConfigError(
            f"train.answers is {settings.answers}, but train.stage scst draws its own captions: set it to 1."
        )
