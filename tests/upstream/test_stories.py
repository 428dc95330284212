"""A trained LLaMA (260k parameters, grouped queries) through our class tells the story published for it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig

from excitor_mm.config import ExcitorConfig
from excitor_mm.llama import ExcitorLlamaForCausalLM


def load_llama2c(path: Path) -> ExcitorLlamaForCausalLM:
    """llama2.c's legacy layout: seven integers, then float32 weights; rotary pairs are interleaved there."""
    data = path.read_bytes()
    width, inner, layers, heads, key_heads, vocabulary, length = struct.unpack("7i", data[:28])
    numbers, used = torch.from_numpy(np.frombuffer(data[28:], dtype=np.float32).copy()), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal used
        count = int(np.prod(shape))
        used += count
        return numbers[used - count : used].view(shape)

    def halves(weight: torch.Tensor, count: int) -> torch.Tensor:
        """Rotary pairs (0, 1), (2, 3) ... to (0, d/2), (1, d/2 + 1) ... in each head."""
        return weight.view(count, -1, 2, width).transpose(1, 2).reshape(-1, width)

    key_width = width // heads * key_heads
    names = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names += ["post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    shapes = [(width,), (width, width), (key_width, width), (key_width, width), (width, width)]
    shapes += [(width,), (inner, width), (width, inner), (inner, width)]
    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    for name, shape in zip(names, shapes, strict=True):
        for layer, weight in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, heads if name.endswith("q_proj") else key_heads)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    state["model.norm.weight"] = take(width)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = ExcitorLlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def pieces(path: Path) -> list[bytes]:
    """llama2.c's tokenizer file: for each piece a score, a length and its bytes."""
    data, place, found = path.read_bytes(), 4, []
    while place < len(data):
        _, length = struct.unpack("fi", data[place : place + 8])
        found.append(data[place + 8 : place + 8 + length])
        place += 8 + length
    return found


def test_published_story_with_and_without_closed_gates(shared: Path) -> None:
    folder = shared / "stories260k"
    expected = json.loads((folder / "expected_greedy_200.json").read_text())
    model = load_llama2c(folder / "stories260K.bin")
    words = pieces(folder / "tok512.bin")

    def story() -> str:
        ids = torch.tensor([expected["prompt_token_ids"]])
        out = model.generate(ids, max_new_tokens=expected["steps"], do_sample=False, pad_token_id=0)
        text = b"".join(words[i] for i in out[0, 1:].tolist())
        for number in range(256):
            text = text.replace(f"<0x{number:02X}>".encode(), bytes([number]))
        return text.decode().strip()

    assert story() == expected["expected_text"]
    model.add_excitors(ExcitorConfig(layers=4, gate_start=0.0), visual_width=8)
    assert story() == expected["expected_text"]
