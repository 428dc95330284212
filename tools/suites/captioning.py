"""caption: pictures to captions, against the encoders alone plus the bare language model alone."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator
from io import StringIO
from unittest.mock import patch

import torch
from transformers import LlamaForCausalLM

from excitor_mm.generate import caption_pictures
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.pictures import find_pictures
from suites.measure import Comparison, Side
from suites.models import load_other, load_ours


def caption(options: Namespace) -> list[Comparison]:
    """Every side writes the same number of tokens with the adapter's beams, so that no caption's end decides."""
    ours = load_ours(options.adapter, options.dtype)
    bare = load_other("bare", ours.config, options.dtype)
    pictures = list(find_pictures([options.images], StringIO()).pictures(lambda *_: None))[: options.count]
    pixels = [ours.processor.pixels(picture.source) for picture in pictures]
    length = {"min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens}
    decoding = dataclasses.replace(ours.config.decoding, **length)
    size = options.batch_size

    def whole() -> None:
        for _ in caption_pictures(ours, pictures, batch_size=size, decoding=decoding):
            pass

    def prepare() -> None:
        for picture in pictures:
            ours.processor.pixels(picture.source)

    def batches() -> Iterator[dict]:
        for start in range(0, len(pixels), size):
            group = pixels[start : start + size]
            yield ours.processor.collate([ours.processor.caption_ids()] * len(group), group)

    def encode() -> None:
        with torch.no_grad():
            for inputs in batches():
                ours.tower.encode(inputs["pixel_values"])

    def parts() -> None:
        encode()
        for inputs in batches():
            bare.generate(**inputs, decoding=decoding)

    def upstream() -> None:  # as LlamaForCausalLM does it, which reads the prompt for each beam
        with patch.object(ExcitorLlamaForCausalLM, "_prefill", LlamaForCausalLM._prefill):
            parts()

    facts = {
        "pictures": len(pictures),
        "batch": size,
        "beams": decoding.beams,
        "new tokens": options.new_tokens,
        "dtype": options.dtype,
    }
    sides: dict[str, Side] = {
        "excitor, files to captions": whole,
        "reading and resizing alone": prepare,
        "encoders alone": encode,
        "encoders alone, then bare language model alone": parts,
        "the same, the prompt read for each beam": upstream,
    }
    return [Comparison("caption", sides, len(pictures), "image", facts=facts)]
