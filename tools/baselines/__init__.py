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

from collections.abc import Sequence

from torch import nn

from baselines.base import Baseline, load_parts
from baselines.llama_adapter import LlamaAdapterModel
from baselines.prefix import ClipCapMapper, PrefixModel, llava_projector
from baselines.published import GitSide, QFormerProjector
from excitor_mm.config import RunConfig

TRAINED = ("bare", "lora", "llama-adapter", "clipcap", "llava", "llava-lora", "blip2")
NAMES = (*TRAINED, "git")
CLIPCAP_TOKENS = 10  # ClipCap's default


def build_baseline(
    name: str, config: RunConfig, palette: Sequence[str], *, rank: int = 16, hidden: int = 576
) -> Baseline:
    """One of `NAMES` with fresh trainable parts; seed torch beforehand.

    Args:
        name: of the method.
        config: its language model, encoders, prompt and decoding are used; for llama-adapter also the number of
            layers and prompts of its `excitor`.
        palette: words that fill `{palette}` in the prompt.
        rank: of LoRA.
        hidden: width between the two layers of ClipCap's mapper; it decides how many parameters train.
    """
    if name not in NAMES:
        raise ValueError(f"the method is {name!r}: choose one of {', '.join(NAMES)}")
    parts = load_parts(config, palette)
    width, shape = parts.tower.width, parts.language.config
    if name.endswith("lora"):
        add_lora(parts.language, rank)
    if name == "llama-adapter":
        return LlamaAdapterModel(parts, config.excitor.layers or shape.num_hidden_layers - 2, config.excitor.prompts)
    if name == "clipcap":
        return PrefixModel(parts, ClipCapMapper(width, shape.hidden_size, CLIPCAP_TOKENS, hidden))
    if name == "blip2":
        return PrefixModel(parts, QFormerProjector(width, shape))
    if name == "git":
        return GitSide(parts)
    if name.startswith("llava"):
        return PrefixModel(parts, llava_projector(width, shape.hidden_size))
    return Baseline(*parts)


def add_lora(language: nn.Module, rank: int) -> None:
    """PEFT's LoRA on q and v, trainable in fp32 as PEFT does by default."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"]), language)
    for parameter in language.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
