"""The adapter folder: everything a training run adds to frozen parts that anyone can fetch.

    excitor.safetensors    the Excitor's tensors only (megabytes), float32
    lora.safetensors       LoRA's, where there is LoRA
    excitor_config.json    `AdapterConfig`: format version, frozen parts with fingerprints, prompt, decoding
    config.json            tells transformers' Auto classes what the folder is (see hub/); never read here
    README.md              the model card, for people and the Hub

Written to a temporary sibling and renamed, so that no reader ever sees half a folder. Read strictly: a
missing or unexpected tensor, an unknown key, a newer format or another base model is refused with a sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excitor_mm.card import model_card
from excitor_mm.config import (
    DecodingConfig,
    EncoderConfig,
    ExcitorConfig,
    LanguageConfig,
    LoraConfig,
    Prompts,
    from_dict,
)
from excitor_mm.errors import AdapterError, ConfigError
from excitor_mm.files import write_folder

FORMAT_VERSION = 2  # 1: captions alone, "template" and "palette" in place of "prompts"
TENSORS = "excitor.safetensors"
LORA = "lora.safetensors"
CONFIG = "excitor_config.json"
CARD = "README.md"
FILES = (TENSORS, LORA, CONFIG, "config.json", CARD)
"""All that an adapter folder holds."""
THEN = ", then "
"""Between the stages of a training in `AdapterConfig.training`."""
MODEL_TYPE = "excitor_mm"
"""What transformers' AutoConfig finds in config.json."""


@dataclass(frozen=True)
class AdapterConfig:
    """What excitor_config.json holds."""

    language: LanguageConfig
    """The frozen language model."""
    language_fingerprint: str
    """See `fingerprint`."""
    vision: list[EncoderConfig]
    """The frozen encoders, in the order of their tokens."""
    vision_fingerprint: str
    """See `fingerprint`."""
    excitor: ExcitorConfig
    """Sizes of the blocks."""
    prompts: Prompts
    """What it was trained for, and with which prompts."""
    decoding: DecodingConfig
    """How answers are generated unless told otherwise."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """LoRA beside the Excitor; rank 0: none."""
    training: dict[str, str] = field(default_factory=dict)
    """Free text for people: data, steps, scores."""
    format_version: int = FORMAT_VERSION
    """Raised when the meaning of a key changes."""

    @property
    def stages(self) -> list[str]:
        """See `TrainConfig.stage`, the earliest first; where nothing is noted there was only cross entropy yet."""
        return self.training.get("stage", "cross-entropy").split(THEN)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of a model's weights that does not depend on the precision they are loaded in.

    A few values of every tensor are hashed. They are rounded to bfloat16 after values below 2^-10 are set
    to zero, which float32, float16 and bfloat16 copies of the same weights agree on.

    Args:
        tensors: (name, float tensor) pairs; names and shapes count too.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)].float().cpu()
        rounded = torch.where(values.abs() < 2**-10, 0.0, values).to(torch.bfloat16)
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter folder, replacing an older one only when the new one is complete.

    Args:
        folder: to write.
        config: of the adapter.
        tensors: of the Excitor.
        lora: tensors of LoRA; empty or None: no such file.

    Raises:
        DataError: no space, or no permission.
    """
    from safetensors.torch import save

    files = {
        name: save({key: tensor.detach().cpu().contiguous() for key, tensor in (group or {}).items()})
        for name, group in ((TENSORS, tensors), (LORA, lora))
        if name == TENSORS or group
    }
    facts = {"model_type": MODEL_TYPE, "architectures": ["ExcitorForImageTextToText"]}
    texts = {
        CONFIG: json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n",
        "config.json": json.dumps(facts, indent=2) + "\n",
        CARD: card_of(folder.name, config),
    }
    write_folder(folder, {**files, **{name: text.encode("utf-8") for name, text in texts.items()}})


def card_of(name: str, config: AdapterConfig, report: Mapping[str, Any] | None = None) -> str:
    """The model card of an adapter; `report` as in `model_card`."""
    return model_card(
        name,
        language=config.language,
        vision=config.vision,
        decoding=config.decoding,
        training=config.training,
        report=report,
    )


def find_adapter(
    name: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of an adapter: the name itself, or a Hub id fetched into the Hub's cache.

    Raises:
        AdapterError: no folder, and no id that the Hub knows or that can be fetched.
    """
    if Path(name).exists() or str(name).count("/") != 1:
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{name} is no folder, and the Hub gives no adapter of that name: {reason}") from error


def load_config(folder: Path) -> AdapterConfig:
    """Read excitor_config.json.

    Raises:
        AdapterError: not an adapter folder, damaged, or written by a newer version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} holds no {CONFIG}: give the folder that `excitor-mm train` wrote.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON ({error}): the adapter is damaged, copy it again.") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise AdapterError(
            f"{path} has format version {version!r}, this excitor-mm reads 1 to {FORMAT_VERSION}: "
            "update excitor-mm or train the adapter again."
        )
    if version == 1 and {"template", "palette"} <= values.keys():
        prompts = {"templates": {"caption": values.pop("template")}, "palette": values.pop("palette")}
        values = {**values, "prompts": prompts, "format_version": FORMAT_VERSION}
    try:
        return from_dict(AdapterConfig, values)
    except ConfigError as error:
        raise AdapterError(f"{path} cannot be used: {error}") from error


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file of an adapter folder and check it against the tensors of a freshly built model.

    Raises:
        AdapterError: damaged, or names or shapes that differ from `expected`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.name == LORA and not expected:
        if path.exists():
            raise AdapterError(f"{path} is there, but {CONFIG} names no LoRA: copy the adapter again.")
        return {}
    if not path.is_file():
        raise AdapterError(f"{path.parent} holds no {path.name}: the adapter is incomplete, copy it again.")
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is damaged ({error}): copy the adapter again.") from error
    missing, unexpected = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or unexpected:
        raise AdapterError(
            f"{path} does not fit its config: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; train the adapter again."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise AdapterError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; "
                "the base model or the encoder is another one than in training."
            )
    return tensors


def check_parts(found: AdapterConfig, trained: AdapterConfig) -> None:
    """Refuse other frozen parts than the adapter was trained on.

    Args:
        found: of the model at hand.
        trained: of the adapter.

    Raises:
        AdapterError: another language model or encoder.
    """
    encoders = " + ".join(encoder.model for encoder in found.vision)
    for what, name, got, expected in (
        ("language model", found.language.path, found.language_fingerprint, trained.language_fingerprint),
        ("encoder", encoders, found.vision_fingerprint, trained.vision_fingerprint),
    ):
        if got != expected:
            raise AdapterError(
                f"The {what} {name!r} has fingerprint {got}, but the adapter was trained on {expected}: "
                f"give the {what} it was trained with."
            )
