"""The other ways to show a picture to a frozen LLaMA, behind the interface of `ExcitorModel`: for measuring only.

In: a run configuration (see `excitor_mm.config`). Out: a model on the same frozen parts with the same `forward`,
`generate`, `trainables` and `save_pretrained`, so that training, data, generation and evaluation are our own code.

    bare            the frozen language model, blind
    lora            PEFT's LoRA on q and v, blind
    llama-adapter   zero-gated prompts with the image added, as extra keys and values in the topmost layers
    clipcap         the mean visual token, through an MLP, as 10 tokens before the text
    llava           every visual token, through transformers' own LLaVA projector, before the text
    llava-lora      the same, with LoRA
    blip2           32 tokens from a Q-Former before the text
    git             a decoder of its own for image and text, for generating only
"""

from __future__ import annotations

import copy

from torch import nn

from baselines.base import Baseline, Parts, load_parts
from baselines.llama_adapter import LlamaAdapterModel
from baselines.prefix import ClipCapMapper, PrefixModel, llava_projector
from baselines.published import GitSide, QFormerProjector
from excitor_mm.config import LoraConfig, Prompts, RunConfig
from excitor_mm.errors import ConfigError
from excitor_mm.lora import add_lora

TRAINED = ("bare", "lora", "llama-adapter", "clipcap", "llava", "llava-lora", "blip2")
NAMES = (*TRAINED, "git")
CLIPCAP_TOKENS = 10  # ClipCap's default


def build_baseline(name: str, config: RunConfig, prompts: Prompts, size: int | None = None) -> Baseline:
    """One of `NAMES` with fresh trainable parts; seed torch beforehand.

    Args:
        name: of the method.
        config: its language model, encoders and decoding are used; for llama-adapter also the number of layers of
            its `excitor`.
        prompts: of its tasks.
        size: what decides how many parameters train: the prompts a layer of llama-adapter (None: as many as the
            Excitor's), the rank of LoRA (16), the width between the two layers of clipcap's mapper (576) and of
            llava's projector (the language model's). The others have one size.
    """
    if name not in NAMES:
        raise ConfigError(f"The method is {name!r}: choose one of {', '.join(NAMES)}.")
    return add_method(name, load_parts(config, prompts), size)


def add_method(name: str, parts: Parts, size: int | None) -> Baseline:
    """The method's trainable parts on frozen ones; see `build_baseline`."""
    shape, excitor = parts.language.config, parts.config.excitor
    width, model_width = parts.tower.width, shape.hidden_size
    if name.endswith("lora"):
        add_lora(parts.language, LoraConfig(rank=size or 16, alpha=size or 16))
    if name == "llama-adapter":
        layers = excitor.layers or shape.num_hidden_layers - 2
        return LlamaAdapterModel(parts, layers, size or excitor.prompts)
    if name == "clipcap":
        return PrefixModel(parts, ClipCapMapper(width, model_width, CLIPCAP_TOKENS, size or 576))
    if name == "blip2":
        return PrefixModel(parts, QFormerProjector(width, shape))
    if name == "git":
        return GitSide(parts)
    if name == "llava":
        return PrefixModel(parts, llava_projector(width, model_width, size or model_width))
    if name == "llava-lora":
        return PrefixModel(parts, llava_projector(width, model_width, model_width))
    return Baseline(*parts)


def equal_size(name: str, parts: Parts, trainables: int) -> int:
    """The `size` of a method that trains about so many parameters, within 10 %.

    Args:
        name: of a method that trains something.
        parts: the frozen ones; they lose their values, because only shapes count.
        trainables: number of parameters.

    Raises:
        ConfigError: no size does.
    """
    for frozen in (parts.language, parts.tower):
        nn.Module.to(frozen, "meta")

    def count(size: int) -> int:
        return sum(p.numel() for p in add_method(name, copy.deepcopy(parts), size).trainables().values())

    each = count(2) - count(1)  # every method's number is linear in its size
    size = max(1, round((trainables - count(1)) / each) + 1)
    if not 0.9 * trainables <= count(size) <= 1.1 * trainables:
        raise ConfigError(
            f"{name} trains {count(size):,} parameters at the nearest size, which is not within 10 % of the "
            f"Excitor's {trainables:,}: leave it out, or choose an Excitor of other sizes."
        )
    return size
