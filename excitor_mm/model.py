"""The whole model: frozen vision tower + frozen LLaMA + trainable Excitor blocks.

In: token ids and prepared pixels (see `processor.py`). Out: a training loss, or generated token ids.
Only the Excitor blocks train, and only they are saved (see `adapter.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from excitor_mm import adapter
from excitor_mm.adapter import AdapterConfig
from excitor_mm.branches import sight
from excitor_mm.config import (
    DecodingConfig,
    EncoderConfig,
    ExcitorConfig,
    LanguageConfig,
    LoraConfig,
    Prompts,
    from_dict,
)
from excitor_mm.data.pipeline import TaskFormat
from excitor_mm.errors import AdapterError, ConfigError
from excitor_mm.language import answer_losses, choose_device, generate_options, load_language
from excitor_mm.llama import ExcitorLlamaForCausalLM, take_rows
from excitor_mm.lora import add_lora, lora_tensors
from excitor_mm.processor import ImageLike, Processor
from excitor_mm.switches import switched_off
from excitor_mm.vision.tower import VisionTower, load_tower


class ExcitorModel(nn.Module):
    """Built from parts; `build_model` and `from_pretrained` load the parts by name.

    Args:
        tower: the frozen encoders.
        language: the frozen language model, with Excitor blocks.
        tokenizer: of the language model.
        config: what `save_pretrained` writes beside the tensors.
    """

    def __init__(
        self, tower: VisionTower, language: ExcitorLlamaForCausalLM, tokenizer: Any, config: AdapterConfig
    ) -> None:
        super().__init__()
        self.tower, self.language, self.config = tower, language, config
        self.processor = Processor(tokenizer, tower, self.task_format)

    @property
    def device(self) -> torch.device:
        """Where the language model reads its input."""
        return self.language.device

    def base_model(self) -> AbstractContextManager[None]:
        """`with model.base_model(): ...` is the untouched language model bit for bit, in this thread alone.

        Raises:
            ConfigError: LoRA was merged into its weights.
        """
        if self._lora_is_merged():
            raise ConfigError("LoRA is merged into the base weights: load the adapter again for the base model.")
        return switched_off("excitor", "lora")

    def _lora_is_merged(self) -> bool:
        return self.config.lora.rank > 0 and not lora_tensors(self.language)

    def task_format(self, task: str) -> TaskFormat:
        """The prompts of one of the adapter's tasks; AdapterError where it is none of them."""
        return TaskFormat.of(self.config.prompts, task, self.language.config.max_position_embeddings)

    def trainables(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by their name in the adapter: `layers.2.gate`, and PEFT's names for LoRA's."""
        return {**self.language.excitor_tensors(), **lora_tensors(self.language)}

    def visual_prompts(
        self, pixel_values: Sequence[Tensor], image_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Encode images once for all layers and all decoding steps.

        Args:
            pixel_values: one [B, 3, S, S] for each encoder, normalised or uint8.
            image_mask: bool[B], False for samples without an image; None: all have one.

        Returns:
            float[B, L, 2, N, R] and bool[B, N]; both None when no sample has an image.

        Raises:
            AdapterError: an image for an adapter that has no encoder.
        """
        if image_mask is not None and not image_mask.any():
            return None, None
        if not self.tower.encoders:
            raise AdapterError("The adapter has no encoder, so it cannot see an image: leave the image out.")
        if not self.language.excitors():  # LoRA alone reads no picture
            return None, None
        visual = self.language.project_visual(*self.tower.tokens([pixels.to(self.device) for pixels in pixel_values]))
        if image_mask is None or image_mask.all():
            return visual, None
        return visual, image_mask.to(self.device)[:, None].expand(-1, visual.shape[3])

    def forward(self, *, weights: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of the answers.

        Args:
            weights: float[B, T], factor of the loss of each token; None: 1.
            inputs: see `answer_losses`.

        Returns:
            float32[] sum, and int64[] number of answer tokens. The caller divides once, over accumulation and ranks.
        """
        losses, wanted = self.answer_losses(**inputs)
        if weights is not None:
            losses = losses * weights.to(losses.device)[:, 1:][wanted]
        return losses.sum(), wanted.sum()

    def answer_losses(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        *,
        branches: Tensor | None = None,
        image_rows: Tensor | None = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        **images: Any,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of each answer token, and where they are; see `language.answer_losses`.

        Args:
            input_ids, attention_mask, branches: int64[B, T]; branches where answers share a prompt, see branches.py.
            labels: int64[B, T], the token at its own position, -100 where it is not part of an answer.
            label_smoothing, temperature: see `language.answer_losses`.
            image_rows, images: see `generate` and `visual_prompts`.
        """
        visual, mask = take_rows(self.visual_prompts(**images), image_rows)
        hidden = self.language.model(
            input_ids=input_ids.to(self.device),
            **sight(attention_mask.to(self.device), branches, self.language.dtype),
            visual_prompts=None if visual is None else visual.unbind(1),
            visual_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return answer_losses(self.language.lm_head, hidden, labels.to(self.device), label_smoothing, temperature)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Sequence[Tensor],
        image_mask: Tensor | None = None,
        *,
        image_rows: Tensor | None = None,
        decoding: DecodingConfig | None = None,
        **options: Any,
    ) -> Tensor:
        """New token ids int64[B, T'], without the prompt.

        Args:
            input_ids, attention_mask, pixel_values, image_mask: from `processor(...)`.
            image_rows: int64[B], which of fewer images each row is about; None: row i is about image i.
            decoding: replaces the adapter's own.
            options: passed on to transformers' `generate`.
        """
        visual, mask = take_rows(self.visual_prompts(pixel_values, image_mask), image_rows)
        ids = self.language.generate(  # type: ignore[misc]
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            visual_prompts=None if visual is None else visual.unbind(1),
            visual_mask=mask,
            **{**generate_options(decoding or self.config.decoding), **options},
        )
        return ids[:, input_ids.shape[1] :]

    @overload
    def caption(self, images: ImageLike, **options: Any) -> str: ...
    @overload
    def caption(self, images: Sequence[ImageLike], **options: Any) -> list[str]: ...
    def caption(self, images: ImageLike | Sequence[ImageLike], **options: Any) -> str | list[str]:
        """Caption one image (a text) or several in one batch (a list).

        Args:
            images: PIL image, encoded bytes or path, or a list of them.
            options: `prompt`, `decoding`, or options of transformers' `generate`.
        """
        batch: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        inputs = self.processor(images=batch, text=options.pop("prompt", None))
        captions = self.processor.batch_decode(self.generate(**inputs, **options))
        return captions if isinstance(images, (list, tuple)) else captions[0]

    def save_pretrained(self, folder: str | Path, training: dict[str, str] | None = None) -> None:
        """Write the adapter folder; `training` is free text for people.

        Raises:
            AdapterError: LoRA was merged into the base weights, which an adapter does not hold.
        """
        if self._lora_is_merged():
            raise AdapterError("LoRA is merged into the base weights: an adapter is saved before merging.")
        config = dataclasses.replace(self.config, training=training or self.config.training)
        adapter.save_adapter(Path(folder), config, self.language.excitor_tensors(), lora_tensors(self.language))

    @torch.no_grad()
    def load_tensors(self, folder: Path) -> None:
        """Take the trainable tensors of an adapter folder; AdapterError where they do not fit."""
        files = {adapter.TENSORS: self.language.excitor_tensors(), adapter.LORA: lora_tensors(self.language)}
        for file, trainables in files.items():
            for name, tensor in adapter.load_tensors(folder / file, trainables).items():
                trainables[name].copy_(tensor)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        language: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        loading: Mapping[str, Any] | None = None,
    ) -> ExcitorModel:
        """Load an adapter folder and the frozen parts it names.

        Args:
            folder: what `save_pretrained` wrote, or a Hub id.
            language: another place of the same language model.
            device: "auto", "cpu" or "cuda".
            dtype: precision of the language model. "auto": float32 on the CPU, where a batch then gives the text
                of single calls; on a GPU what it was trained in. In half precision the rounding of a matrix
                product depends on the batch, and now and then on a near tie another word wins.
            loading: see `load_language`; with `device_map`, `device` is ignored.

        Raises:
            AdapterError: damaged, or another base model or encoder than in training.
            DependencyError: default parts that were not fetched yet.
        """
        folder = adapter.find_adapter(folder)
        config = adapter.load_config(folder)
        place = choose_device(device)
        if dtype == "auto":
            dtype = "float32" if place.type == "cpu" else config.language.dtype
        changes = {"path": language or config.language.path, "dtype": dtype}
        parts = from_dict(LanguageConfig, {**dataclasses.asdict(config.language), **changes})
        sizes = config.vision, config.excitor, config.prompts, config.decoding, config.lora
        model = build_model(parts, *sizes, loading)
        adapter.check_parts(model.config, config)
        model.load_tensors(folder)
        model.config = config
        if loading and "device_map" in loading:  # the language model is where it was put
            model.tower.to(model.device)
            return model.eval()
        return model.eval().to(place)


def build_model(
    language: LanguageConfig,
    vision: list[EncoderConfig],
    excitor: ExcitorConfig,
    prompts: Prompts,
    decoding: DecodingConfig,
    lora: LoraConfig,
    loading: Mapping[str, Any] | None = None,
) -> ExcitorModel:
    """Load the frozen parts and put fresh Excitor blocks, and LoRA where it is asked for, in.

    `loading` as in `load_language`.

    Raises:
        ConfigError: a part that cannot be built, or a language model that is not a LLaMA.
        DependencyError: default parts that were not fetched yet.
    """
    tower = load_tower(vision)
    llama, tokenizer = load_language(language, loading)
    steady = [(n, p) for n, p in llama.named_parameters() if "norm" in n or "embed_tokens" in n]  # never quantised
    if excitor.layers == 0 and lora.rank == 0:
        raise ConfigError("excitor.layers and lora.rank are both 0, so nothing would train: raise one of them.")
    if lora.rank:
        add_lora(llama, lora)
    llama.add_excitors(excitor, tower.width or None)
    for parameter in lora_tensors(llama).values():
        parameter.requires_grad_(True)  # add_excitors froze all that was there
    config = AdapterConfig(
        language=language,
        language_fingerprint=adapter.fingerprint(steady),
        vision=vision,
        vision_fingerprint=adapter.fingerprint(tower.named_parameters()),
        excitor=dataclasses.replace(excitor, layers=len(llama.excitors())),
        prompts=prompts,
        decoding=decoding,
        lora=lora,
    )
    return ExcitorModel(tower, llama, tokenizer, config)
