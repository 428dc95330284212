"""Images and texts to the tensors of `ExcitorModel.generate`, and token ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from excitor_mm.data.images import load_image
from excitor_mm.prompts import prompt_ids
from excitor_mm.vision.tower import VisionTower

ImageLike = Image.Image | bytes | str | Path


class Processor:
    """Used as in transformers: `inputs = processor(images=..., text=...)`, `processor.batch_decode(ids)`.

    Args:
        tokenizer: of the language model.
        tower: whose encoders say how images are prepared.
        prompt: the text before the answer where a call gives none.
    """

    def __init__(self, tokenizer: Any, tower: VisionTower, prompt: str) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.transform = tower.transform()
        self.pixel_shapes = [(3, e.preprocessing.size, e.preprocessing.size) for e in tower.encoders]

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike | None] | None = None,
        text: str | Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """One sample for each image or text.

        Args:
            images: a PIL image, encoded bytes, a path, or a list of them; None in a list: no image.
            text: a prompt for all, or one for each; None: the adapter's own.

        Returns:
            input_ids: int64[B, T], padded on the left; attention_mask: int64[B, T];
            pixel_values: one float[B, 3, S, S] for each encoder; image_mask: bool[B].

        Raises:
            BadImage: an image that cannot be read.
        """
        if images is not None and not isinstance(images, (list, tuple)):
            images = [images]  # type: ignore[list-item]
        texts = [self.prompt if text is None else text] if text is None or isinstance(text, str) else list(text)
        count = max(len(texts), len(images or []))
        texts = texts * count if len(texts) == 1 else texts
        pictures = list(images or [None] * count)
        pictures = pictures * count if len(pictures) == 1 else pictures
        if not len(texts) == len(pictures) == count:
            raise ValueError(f"got {len(pictures)} images and {len(texts)} texts: give one text for each image")
        return self.collate(texts, [None if picture is None else self.pixels(picture) for picture in pictures])

    def collate(self, texts: Sequence[str], pixels: Sequence[list[Tensor] | None]) -> dict[str, Any]:
        """Prompts and prepared images (None: no image) to the tensors that `__call__` returns."""
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in texts]
        longest = max(map(len, ids))
        padding = self.tokenizer.pad_token_id or 0
        blank = [torch.zeros(shape) for shape in self.pixel_shapes]
        filled = [blank if image is None else image for image in pixels]
        return {
            "input_ids": torch.tensor([[padding] * (longest - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]),
            "pixel_values": [torch.stack(group) for group in zip(*filled, strict=True)],
            "image_mask": torch.tensor([image is not None for image in pixels]),
        }

    def pixels(self, image: ImageLike) -> list[Tensor]:
        """One float[3, S, S] for each encoder."""
        return self.transform(image.convert("RGB") if isinstance(image, Image.Image) else load_image(image))

    def batch_decode(self, ids: Tensor) -> list[str]:
        """New token ids int64[B, T] -> texts without special tokens, white space collapsed."""
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
