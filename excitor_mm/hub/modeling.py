"""`ExcitorModel` as transformers' Auto classes, pipelines and `generate` expect a model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from excitor_mm.adapter import find_adapter
from excitor_mm.hub.configuration import ExcitorHubConfig
from excitor_mm.hub.upload import push_adapter
from excitor_mm.language import generate_options
from excitor_mm.model import ExcitorModel


class ExcitorForImageTextToText(PreTrainedModel, GenerationMixin):
    """An adapter on its frozen parts.

    Attributes:
        excitor: the model that does the work.
    """

    config_class = ExcitorHubConfig
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = True  # the language model decides

    def __init__(self, config: ExcitorHubConfig, excitor: ExcitorModel) -> None:
        super().__init__(config)
        self.excitor = excitor
        tokenizer = excitor.processor.tokenizer
        self.generation_config = excitor.language.generation_config = GenerationConfig(
            **generate_options(excitor.config.decoding),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=excitor.language.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    @property
    def device(self) -> torch.device:
        """Where the language model reads its input."""
        return self.excitor.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model."""
        return self.excitor.language.dtype

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: ExcitorHubConfig | None = None,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> ExcitorForImageTextToText:
        """Load an adapter and the frozen parts it names.

        Args:
            pretrained_model_name_or_path: an adapter folder or a Hub id.
            config: what `AutoConfig` read; not needed.
            dtype: see `ExcitorModel.from_pretrained`.
            device_map, quantization_config, attn_implementation: handed to the language model's `from_pretrained`.
            revision, token, cache_dir, local_files_only: how a Hub id is fetched.
            others: what the Auto classes and `pipeline` add for models that store weights; ignored.
        """
        folder = find_adapter(pretrained_model_name_or_path, revision, token, cache_dir, local_files_only)
        wishes = {
            "device_map": device_map,
            "quantization_config": quantization_config,
            "attn_implementation": attn_implementation,
        }
        excitor = ExcitorModel.from_pretrained(
            folder,
            device="auto" if device_map else "cpu",
            dtype=str(dtype).removeprefix("torch."),
            loading={name: value for name, value in wishes.items() if value is not None},
        )
        return cls(config or ExcitorHubConfig(), excitor)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Sequence[Tensor] | None = None,
        image_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As `LlamaForCausalLM.forward` (labels, past_key_values, ...), with the images of `ExcitorProcessor`."""
        visual = self._visual(pixel_values, image_mask)
        return self.excitor.language(input_ids=input_ids, attention_mask=attention_mask, **visual, **options)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Sequence[Tensor] | None = None,
        image_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As transformers' `generate`: the prompt and what follows, int64[B, T + T'].

        Args:
            input_ids, attention_mask, pixel_values, image_mask: from `ExcitorProcessor`.
            options: of transformers' `generate`; they replace the adapter's own decoding. A streamer cannot show
                several beams, so with one there is one beam unless `num_beams` says otherwise. An `assistant_model`
                is a plain language model of the same tokenizer: it drafts without the image.
        """
        if options.get("streamer") is not None:
            options.setdefault("num_beams", 1)
        if options.get("assistant_model") is not None:
            options["assistant_model"] = _without_images(options["assistant_model"])
        return self.excitor.language.generate(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            **self._visual(pixel_values, image_mask),
            **options,
        )

    def _visual(self, pixel_values: Sequence[Tensor] | None, image_mask: Tensor | None) -> dict[str, Tensor | None]:
        if pixel_values is None:
            return {}
        visual, mask = self.excitor.visual_prompts(pixel_values, image_mask)
        return {"visual_prompts": visual, "visual_mask": mask}

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **others: Any
    ) -> None:
        """Write the adapter folder: the trained tensors, their configuration and a model card; no frozen weight."""
        self.excitor.save_pretrained(save_directory)
        if push_to_hub:
            push_adapter(Path(save_directory), repo_id or Path(save_directory).name, token=others.get("token"))

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None, **others: Any
    ) -> str:
        """Upload the adapter folder; returns its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "adapter")
            return push_adapter(Path(folder) / "adapter", repo_id, private=private, token=token)


def _without_images(model: Any) -> Any:
    """The same model, weights shared, which accepts visual prompts and ignores them."""

    def forward(self: Any, *args: Any, visual_prompts: Any = None, visual_mask: Any = None, **options: Any) -> Any:
        return type(model).forward(self, *args, **options)

    twin = copy.copy(model)
    twin.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
    return twin
