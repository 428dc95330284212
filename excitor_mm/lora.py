"""LoRA beside the Excitor, through PEFT: low-rank changes to the language model's own linears.

With it the paper's promise is void: the frozen values are altered, and closing the gates no longer gives the base
model. It exists because the paper's best ScienceQA score uses it, and to compare both at equal trainable size.

`add_lora` comes before `add_excitors`, so that LoRA on `k_proj` lies on the base projection, not on the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from excitor_mm.config import LoraConfig
from excitor_mm.errors import ConfigError
from excitor_mm.switches import is_off


def add_lora(language: Any, config: LoraConfig) -> None:
    """Put LoRA layers into a frozen language model; they start at the identity, trainable and in float32.

    Raises:
        ConfigError: targets that the model does not have, or a rank or dropout that makes no sense.
    """
    import peft

    if config.rank < 1 or not 0 <= config.dropout < 1:
        raise ConfigError(
            f"lora.rank is {config.rank} and lora.dropout {config.dropout}: give a rank of at least 1 (0: no LoRA) "
            "and a dropout below 1."
        )
    linears = {name.rpartition(".")[2] for name, module in language.model.named_modules() if "proj" in name}
    if not config.targets or set(config.targets) - linears:
        raise ConfigError(
            f"lora.targets is {config.targets}, but the layers of the language model are called "
            f"{', '.join(sorted(linears))}: choose from these."
        )
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
            rank_pattern=dict(config.rank_pattern),
        ),
        language,
    )
    for layer in _layers(language).values():
        layer.register_forward_hook(_base_when_off)
    for parameter in lora_tensors(language).values():
        parameter.data = parameter.data.float()
    language.eval()


def lora_tensors(language: Any) -> dict[str, nn.Parameter]:
    """LoRA's parameters under PEFT's names for files; empty without LoRA."""
    if not _layers(language):
        return {}
    import peft

    return peft.get_peft_model_state_dict(language, state_dict=dict(language.named_parameters()))


@contextmanager
def lora_dropout(model: nn.Module) -> Iterator[None]:
    """Inside the block LoRA's dropout drops; everything else stays in eval mode."""
    drops = [layer.lora_dropout for layer in _layers(model).values()]
    for drop in drops:
        drop.train()
    try:
        yield
    finally:
        for drop in drops:
            drop.eval()


def merge_lora(language: Any) -> None:
    """Add LoRA to the base weights and take its layers out: faster, and rounded to the base's precision."""
    for name, layer in _layers(language).items():
        layer.merge(safe_merge=True)
        language.set_submodule(name, layer.get_base_layer())


def unload_lora(language: Any) -> None:
    """Take LoRA's layers out; the base weights are as they were."""
    for name, layer in _layers(language).items():
        language.set_submodule(name, layer.get_base_layer())


def _layers(language: Any) -> dict[str, Any]:
    """Name -> PEFT layer. Told by an attribute, because importing PEFT takes seconds that most models do not need."""
    return {name: module for name, module in language.named_modules() if hasattr(module, "lora_A")}


def _base_when_off(layer: Any, given: tuple[Any, ...], output: Any) -> Any:
    """A forward hook, because PEFT's own switch holds for every thread at once."""
    return layer.base_layer(*given) if is_off("lora") else output
