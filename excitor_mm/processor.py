"""Images and texts to the tensors of `ExcitorModel.generate`, and token ids back to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from excitor_mm.data.images import load_image
from excitor_mm.data.pipeline import TaskFormat, stack_pixels
from excitor_mm.prompts import prompt_ids
from excitor_mm.templates import CAPTION_INSTRUCTION, Turn
from excitor_mm.vision.tower import VisionTower

ImageLike = Image.Image | bytes | str | Path


class Processor:
    """Used as in transformers: `inputs = processor(images=..., text=...)`, `processor.batch_decode(ids)`.

    Args:
        tokenizer: of the language model.
        tower: whose encoders say how images are prepared.
        task_format: the prompts of one of the adapter's tasks.
    """

    def __init__(self, tokenizer: Any, tower: VisionTower, task_format: Callable[[str], TaskFormat]) -> None:
        self.tokenizer, self.tower, self.task_format = tokenizer, tower, task_format
        self.transform = tower.transform()

    @property
    def prompt(self) -> str:
        """The text before a caption; AdapterError where the adapter was not trained for captions."""
        return self.tokenizer.decode(self.caption_ids(), skip_special_tokens=True)

    def caption_ids(self) -> list[int]:
        """Token ids of what asks for a caption; see `prompt`."""
        return self.task_format("caption").render(self.tokenizer, (Turn(CAPTION_INSTRUCTION),)).ids

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike | None] | None = None,
        text: str | Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """One sample for each image or text.

        Args:
            images: a PIL image, encoded bytes, a path, or a list of them; None in a list: no image.
            text: a prompt for all, or one for each; None: what asks for a caption.

        Returns:
            input_ids: int64[B, T], padded on the left; attention_mask: int64[B, T];
            pixel_values: one float[B, 3, S, S] for each encoder; image_mask: bool[B].

        Raises:
            BadImage: an image that cannot be read.
        """
        if images is not None and not isinstance(images, (list, tuple)):
            images = [images]  # type: ignore[list-item]
        texts: list[str | list[int]] = [self.caption_ids()] if text is None else []
        texts += [text] if isinstance(text, str) else text or []
        count = max(len(texts), len(images or []))
        texts = texts * count if len(texts) == 1 else texts
        pictures = list(images or [None] * count)
        pictures = pictures * count if len(pictures) == 1 else pictures
        if not len(texts) == len(pictures) == count:
            raise ValueError(f"got {len(pictures)} images and {len(texts)} texts: give one text for each image")
        return self.collate(texts, [None if picture is None else self.pixels(picture) for picture in pictures])

    def collate(self, texts: Sequence[str | list[int]], pixels: Sequence[list[Tensor] | None]) -> dict[str, Any]:
        """Prompts, as texts or token ids, and prepared images (None: no image) to the tensors of `__call__`."""
        ids = [prompt_ids(self.tokenizer, text) if isinstance(text, str) else text for text in texts]
        return {**self.pad(ids), **stack_pixels(list(pixels))}

    def pad(self, ids: Sequence[list[int]]) -> dict[str, Any]:
        """Prompts to input_ids and attention_mask, int64[B, T], padded on the left."""
        longest = max(map(len, ids))
        padding = self.tokenizer.pad_token_id or 0
        return {
            "input_ids": torch.tensor([[padding] * (longest - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]),
        }

    def pixels(self, image: ImageLike) -> list[Tensor]:
        """One float[3, S, S] for each encoder."""
        picture = image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)
        return self.tower.normalise(self.transform(picture))

    def batch_decode(self, ids: Tensor | list[list[int]]) -> list[str]:
        """New token ids int64[B, T], or lists of ids -> texts without special tokens, white space collapsed."""
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
