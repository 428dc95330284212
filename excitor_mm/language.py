"""The frozen language model by name: a default part, a local transformers folder, or a Hub id."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from excitor_mm.config import LanguageConfig
from excitor_mm.defaults import PARTS, default_path
from excitor_mm.errors import ConfigError
from excitor_mm.llama import ExcitorLlamaForCausalLM


def load_language(config: LanguageConfig) -> tuple[ExcitorLlamaForCausalLM, Any]:
    """The frozen language model, in eval mode, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

    path = str(default_path(config.path)) if config.path in PARTS else config.path
    options: dict[str, Any] = {}
    if config.quantization != "none":
        bits = {"load_in_8bit": True} if config.quantization == "8bit" else {"load_in_4bit": True}
        options = {"quantization_config": BitsAndBytesConfig(**bits), "device_map": "auto"}
    try:
        kind = AutoConfig.from_pretrained(path)
        if kind.model_type != "llama":
            raise ConfigError(
                f"The language model {path} is a {kind.model_type}, expected a llama: choose LLaMA 1, 2, 3, "
                "TinyLlama, SmolLM2 or another LlamaForCausalLM."
            )
        tokenizer = AutoTokenizer.from_pretrained(path)
        llama = ExcitorLlamaForCausalLM.from_pretrained(
            path,
            config=copy.deepcopy(kind),
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"The language model {path!r} cannot be loaded: {reason}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return llama.eval(), tokenizer


def choose_device(wish: str) -> torch.device:
    """ "auto": a GPU where there is one; with several processes each takes its own."""
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU: choose cpu or auto.")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if wish == "cuda" else torch.device(wish)
