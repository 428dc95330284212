"""Conversions compute what the published files compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from excitor_mm.defaults import convert, fetch
from excitor_mm.errors import DependencyError
from excitor_mm.vision.timm_encoder import load_timm
from tests.conftest import llama_config


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K in the rotary order of GGUF: pairs side by side, where transformers keeps halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def write_gguf(path: Path, llama: LlamaForCausalLM) -> None:
    config = llama.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    pieces = ["<unk>", "<s>", "</s>", "a", "b", "ab", *(f"w{i}" for i in range(6, config.vocab_size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in llama.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        array = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = interleaved(array, heads)
        writer.add_tensor(names.get_name(name, (".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_gguf_becomes_the_same_llama(key_heads: int, tmp_path: Path) -> None:
    torch.manual_seed(key_heads)
    config = llama_config(
        key_heads, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 5e4}
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "original")
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "original").eval()  # keeps rotary frequencies in fp32
    write_gguf(tmp_path / "tiny.gguf", llama)
    convert.smollm2(tmp_path / "tiny.gguf", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert plain.dtype == torch.bfloat16
    ids = torch.randint(3, 300, (2, 12))
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, llama(ids).logits)


def test_a_transformers_that_misreads_the_end_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaForCausalLM(llama_config(tie_word_embeddings=True)).bfloat16().save_pretrained(tmp_path / "original")
    write_gguf(tmp_path / "tiny.gguf", LlamaForCausalLM.from_pretrained(tmp_path / "original").eval())
    read = AutoTokenizer.from_pretrained

    def as_5_17_did(*args: Any, **options: Any) -> Any:
        tokenizer = read(*args, **options)
        tokenizer.eos_token = tokenizer.bos_token
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", as_5_17_did)
    with pytest.raises(DependencyError, match=r"takes token 1 of tiny\.gguf for its end, expected 2"):
        convert.smollm2(tmp_path / "tiny.gguf", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_tokenizer_of_the_default_model_loses_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch.fetch_defaults()["smollm2-135m-instruct"])
    text = "  Two cats, 12345 dogs;\n\tit's a café.\u2028日本 🐈 <|im_start|>user\nhi<|im_end|>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} == {1, 2} <= set(ids)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def published_lite0(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite0 as TensorFlow computes it, up to the last feature map: float[B, 1280, 7, 7]."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, [total // 2, total - total // 2] * 2)  # the odd pixel goes right and below
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for number in range(16):
        name, start = f"_blocks.{number}", x
        if number > 0:
            x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + start if x.shape == start.shape else x
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1"))


def test_lite0_gives_the_features_of_the_published_network(tmp_path: Path) -> None:
    """Through the project's own loader, because padding and epsilon travel in the metadata."""
    published = fetch._download(fetch.SOURCES["efficientnet-lite0"], tmp_path)
    convert.efficientnet_lite0(published, tmp_path / "lite0.safetensors")
    encoder = load_timm("efficientnet_lite0", str(tmp_path / "lite0.safetensors"), None).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published_lite0(torch.load(published, weights_only=True), pixels)
        torch.testing.assert_close(encoder.net.forward_features(pixels), expected, atol=1e-4, rtol=1e-4)


def test_vit_gives_the_tokens_of_the_published_graph(tmp_path: Path) -> None:
    """The ONNX file, run up to the final norm, against timm, on noise."""
    published = fetch._download(fetch.SOURCES["vit-small-14"], tmp_path)
    graph = onnx.load(published)
    final = "/backbone/layernorm/Add_1_output_0"
    end = next(i for i, node in enumerate(graph.graph.node) if final in node.output)
    del graph.graph.node[end + 1 :], graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(final, TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = ReferenceEvaluator(graph).run([final], {"input_image": pixels.numpy()})[0]

    convert.vit_small_14(published, tmp_path / "vit.safetensors")
    net = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    net.load_state_dict(load_file(tmp_path / "vit.safetensors"))
    with torch.no_grad():
        tokens = net.forward_features(pixels)
    torch.testing.assert_close(tokens, torch.from_numpy(expected), atol=1e-3, rtol=1e-3)
