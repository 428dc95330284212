"""What a training run starts from: the frozen parts, its prompts, and fresh Excitor blocks or those of an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from excitor_mm.adapter import THEN, load_config
from excitor_mm.cache_features import check_cache
from excitor_mm.config import Prompts, RunConfig, SourceConfig
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.data.tasks import palette_words
from excitor_mm.errors import ConfigError
from excitor_mm.model import ExcitorModel, build_model
from excitor_mm.palette import choose_palette
from excitor_mm.templates import CAPTION, CAPTION_INSTRUCTION, PALETTE, PromptFormat, Turn

Build = Callable[[RunConfig, Prompts], ExcitorModel]
"""Loads a run's frozen parts and puts fresh trainable ones in; another method than Excitor brings its own."""


def build_excitor(config: RunConfig, prompts: Prompts) -> ExcitorModel:
    """See `build_model`."""
    return build_model(config.language, config.vision, config.excitor, prompts, config.decoding, config.lora)


def build_for_training(config: RunConfig, build: Build = build_excitor) -> ExcitorModel:
    """The frozen parts, and trainable ones: fresh ones, or those of the adapter `train.start`.

    Args:
        config: of the run.
        build: of the method.

    Raises:
        ConfigError: another base, or blocks of other sizes, than the adapter to start from; cached tokens of other
            encoders or crops.
    """
    started = load_config(Path(config.train.start)) if config.train.start else None
    prompts = _prompts(config, started.prompts if started else None)
    model = build(config, prompts)
    if started is not None:
        for name in ("language_fingerprint", "vision_fingerprint", "excitor", "lora"):
            if getattr(model.config, name) != getattr(started, name):
                raise ConfigError(
                    f"The adapter {config.train.start} has another {name} ({getattr(started, name)}) than this run "
                    f"({getattr(model.config, name)}): give the run those of the adapter (excitor-mm inspect)."
                )
        model.load_tensors(Path(config.train.start or ""))
    check_cache(config, model.tower)
    for task, template in prompts.templates.items():  # refuses an unusable template
        if PromptFormat(template).describes and (task != "vqa" or "caption" not in prompts.templates):
            raise ConfigError(
                f"The prompt template {template!r} of the task {task} holds {CAPTION}, the model's own caption: that "
                "is for vqa beside caption alone; train both in one run, or choose another template."
            )
        model.task_format(task).render(model.processor.tokenizer, (Turn(CAPTION_INSTRUCTION, answer="a word"),))
    data = ", ".join(f"{Path(source.shards).name} ({source.task})" for source in config.training_sources())
    stages = started.stages if started else []
    stages += [config.train.stage] if stages[-1:] != [config.train.stage] else []
    training = {"data": data, "stage": THEN.join(stages)}
    model.config = dataclasses.replace(model.config, training=training)  # for the model card
    model.eval()  # frozen parts never train; the Excitor blocks have no dropout
    if config.train.gradient_checkpointing:
        model.language.train()
        model.language.activation_checkpointing_enable()
    return model


def _prompts(config: RunConfig, started: Prompts | None) -> Prompts:
    """The prompts of all tasks: of the run's own first, then of what the adapter to start from has learnt already."""
    chosen, templates = config.prompt, config.templates()
    fresh = Prompts(templates, [], chosen.system, chosen.scienceqa, chosen.max_tokens)
    if started is not None:
        earlier = {task: text for task, text in started.templates.items() if task not in templates}
        fresh = dataclasses.replace(fresh, templates=templates | earlier, palette=started.palette)
    with_palette = {task for task, template in fresh.templates.items() if PALETTE in PromptFormat(template).text}
    if with_palette and not fresh.palette:
        sources = [
            (source.weight, _palette_words(source))
            for source in config.training_sources()
            if source.task in with_palette
        ]
        palette = choose_palette(sources, chosen.palette_size, chosen.palette_choice)
        fresh = dataclasses.replace(fresh, palette=list(palette))
    return fresh


def _palette_words(source: SourceConfig) -> Iterator[str]:
    for shard in list_shards(source.shards):
        for sample in read_shard(shard, lambda _: None):  # what cannot be read is counted later, by the stream
            yield from palette_words(sample, source.task)
