"""The frozen language model by name (a default part, a local folder, a Hub id), its device, decoding and loss."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excitor_mm.config import DecodingConfig, LanguageConfig
from excitor_mm.data.pipeline import IGNORE
from excitor_mm.defaults import PARTS, default_path
from excitor_mm.errors import ConfigError
from excitor_mm.llama import ExcitorLlamaForCausalLM


def load_language(
    config: LanguageConfig, loading: Mapping[str, Any] | None = None
) -> tuple[ExcitorLlamaForCausalLM, Any]:
    """The frozen language model, in eval mode, and its tokenizer.

    Args:
        config: which, and how.
        loading: more options of transformers' `from_pretrained`, such as `device_map`.

    Raises:
        ConfigError: it cannot be loaded, or is no LLaMA.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    path = _place(config)
    dtype = native_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention}
    if config.quantization != "none":
        bits = {"load_in_8bit": True} if config.quantization == "8bit" else {"load_in_4bit": True}
        options |= {"quantization_config": BitsAndBytesConfig(**bits), "device_map": "auto"}
    with _explained(path):
        kind = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if kind.model_type != "llama":
            raise ConfigError(
                f"The language model {path} is a {kind.model_type}, expected a llama: choose LLaMA 1, 2, 3, "
                "TinyLlama, SmolLM2 or another LlamaForCausalLM."
            )
        llama = ExcitorLlamaForCausalLM.from_pretrained(
            path, config=copy.deepcopy(kind), **{**options, **(loading or {})}
        )
    if any(parameter.is_meta for parameter in llama.parameters()):
        raise ConfigError(
            "The device map leaves weights on the disk or in main memory: choose devices that hold all."
        )
    tokenizer = load_tokenizer(config)
    # Training ends every answer with the tokenizer's end. The model's files may name others, or none: LLaMA 3's do,
    # and GGUF files converted by some versions of transformers.
    own = llama.generation_config.eos_token_id
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    llama.generation_config.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None)) or None
    llama.generation_config.pad_token_id = tokenizer.pad_token_id
    return llama.eval(), tokenizer


def load_tokenizer(config: LanguageConfig) -> Any:
    """Its tokenizer; padding is the end token where it has none.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    path = _place(config)
    with _explained(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _place(config: LanguageConfig) -> str:
    return str(default_path(config.path)) if config.path in PARTS else config.path


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """What transformers raises, in one sentence."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"The language model {path!r} cannot be loaded: {reason}") from error


def native_dtype() -> torch.dtype:
    """bfloat16 where the GPU, or without one the processor, computes it; else float32.

    A processor without such instructions emulates it: a product of 520 x 576 values and its gradient take 4 to 46
    times as long as in float32 on one with AVX2 alone (docs/log.md, 2026-11-27).
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def choose_device(wish: str) -> torch.device:
    """ "auto": a GPU where there is one; with several processes each takes its own."""
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU: choose cpu or auto.")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if wish == "cuda" else torch.device(wish)


def generate_options(decoding: DecodingConfig) -> dict[str, Any]:
    """Our names to transformers'; sampling options only where sampling is on, or it warns."""
    options: dict[str, Any] = {
        "num_beams": decoding.beams,
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": decoding.min_new_tokens,
        "do_sample": decoding.sample,
        "repetition_penalty": decoding.repetition_penalty,
    }
    if decoding.sample:
        options |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
    if decoding.beams > 1:
        options |= {"length_penalty": decoding.length_penalty}
    return options


def answer_losses(
    lm_head: nn.Module, hidden: Tensor, labels: Tensor, label_smoothing: float = 0.0, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each answer token, float32[n], and where they are, bool[B, T - 1] with n ones.

    Args:
        lm_head: of the language model.
        hidden: float[B, T, C], its last hidden states.
        labels: int64[B, T], the token at its own position, `IGNORE` where it is not part of an answer.
        label_smoothing: probability mass spread over the vocabulary.
        temperature: divides the logits.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    logits = lm_head(hidden[:, :-1][wanted]).float() / temperature  # only where a label is
    return F.cross_entropy(logits, targets[wanted], reduction="none", label_smoothing=label_smoothing), wanted
