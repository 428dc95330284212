"""Every shipped configuration is complete, loads, and the paper's builds at its full size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig

from excitor_mm.config import RunConfig, from_dict
from excitor_mm.llama import ExcitorLlamaForCausalLM
from excitor_mm.templates import PALETTE, PromptFormat
from excitor_mm.vision.tower import load_tower

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def keys(value: object) -> object:
    return {name: keys(item) for name, item in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_complete(path: Path) -> None:
    text = path.read_text()
    values = yaml.safe_load(text)
    config = from_dict(RunConfig, values)
    assert keys(dataclasses.asdict(config)) == keys(values)
    assert text.startswith(f"# excitor-mm train --config configs/{path.name}")


def test_the_papers_config_is_the_papers() -> None:
    path = next(path for path in CONFIGS if path.stem == "coco_caption_llama7b_clip_l336")
    config = from_dict(RunConfig, yaml.safe_load(path.read_text()))
    assert (config.excitor.layers, config.excitor.prompts, config.excitor.rank) == (30, 30, 16)
    assert PALETTE not in PromptFormat(config.prompt.template).text
    encoder = dataclasses.replace(config.vision[0], weights=None)
    with torch.device("meta"):
        language = ExcitorLlamaForCausalLM(
            LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
        )
        language.add_excitors(config.excitor, visual_width=1024)
        image = torch.zeros(2, 577, 1024)
        ids = torch.zeros(2, 40, dtype=torch.long)
        visual = language.project_visual(image)
        mask = torch.zeros(2, 1, 40, 40)  # given ready-made: building one looks at values, and meta has none
        logits = language(ids, attention_mask=mask, visual_prompts=visual, use_cache=False).logits
    assert visual.shape == (2, 30, 2, 577, 16)
    assert logits.shape == (2, 40, 32000)
    assert (encoder.library, encoder.model) == ("open_clip", "ViT-L-14-336")


def test_clip_l_at_336_pixels_gives_577_tokens() -> None:
    from excitor_mm.config import EncoderConfig

    tower = load_tower([EncoderConfig("open_clip", "ViT-L-14-336", None)])
    assert tower([torch.zeros(1, 3, 336, 336)]).shape == (1, 577, 1024)
