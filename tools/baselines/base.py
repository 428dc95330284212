"""What all baselines share: frozen parts loaded as usual, and whatever requires grad is trained and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from excitor_mm.adapter import AdapterConfig, load_tensors
from excitor_mm.config import Prompts, RunConfig
from excitor_mm.files import write_folder
from excitor_mm.language import load_language
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.model import ExcitorModel
from excitor_mm.vision.tower import VisionTower, load_tower

TENSORS = "trainables.safetensors"


class Parts(NamedTuple):
    """The arguments of `ExcitorModel`."""

    tower: VisionTower
    language: ExcitorLlamaForCausalLM
    """Frozen, without Excitor blocks."""
    tokenizer: object
    config: AdapterConfig


def load_parts(config: RunConfig, prompts: Prompts) -> Parts:
    """The frozen parts of a run; fingerprints are left empty, because no baseline is ever shipped."""
    tower, (language, tokenizer) = load_tower(config.vision), load_language(config.language)
    language.requires_grad_(False)
    described = AdapterConfig(
        language=config.language,
        language_fingerprint="",
        vision=config.vision,
        vision_fingerprint="",
        excitor=config.excitor,
        prompts=prompts,
        decoding=config.decoding,
    )
    return Parts(tower, language, tokenizer, described)


class Baseline(ExcitorModel):
    """A frozen language model that no picture reaches; the methods add to it.

    A folder of `save_pretrained` holds its trainable tensors and nothing else: `load_tensors` puts them back into a
    model built with the same arguments.
    """

    def trainables(self) -> dict[str, nn.Parameter]:
        """Everything that requires grad, by its name in the module tree."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def save_pretrained(self, folder: str | Path, training: dict[str, str] | None = None) -> None:
        """Write the trainable tensors; what is said about the training is for adapters alone."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.trainables().items()}
        write_folder(Path(folder), {TENSORS: save(tensors)})

    @torch.no_grad()
    def load_tensors(self, folder: Path) -> None:
        """See `ExcitorModel.load_tensors`."""
        trainables = self.trainables()
        for name, tensor in load_tensors(folder / TENSORS, trainables).items():
            trainables[name].copy_(tensor)

    def visual_prompts(
        self, pixel_values: Sequence[Tensor], image_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """None: the picture is not looked at."""
        return None, None
