"""An adapter on random frozen parts of a given size, for measuring speed where no weights are: `--output FOLDER`.

Unless told otherwise the sizes are those of LLaMA-7B and CLIP ViT-L/14 at 336 px (13 GiB on disk):

    python tools/random_parts.py --output runs/7b
    python tools/benchmark.py generate decode --adapter runs/7b/adapter --image-tokens 577 --sides llava
    python tools/benchmark.py train-step --config runs/7b/run.yaml --batch-size 16 --sides lora llava
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import open_clip
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from excitor_mm.config import DataConfig, EncoderConfig, ExcitorConfig, LanguageConfig, PromptConfig, RunConfig
from excitor_mm.defaults import default_path
from excitor_mm.language import choose_device
from excitor_mm.prepare import build_for_training

TOKENIZER = "smollm2-135m-instruct"


def main() -> None:
    """Write language/, run.yaml and adapter/ into the output folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner-width", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--library", choices=["open_clip", "timm"], default="open_clip", help="of the encoder")
    parser.add_argument("--encoder", default="ViT-L-14-336", help="the library's name")
    parser.add_argument("--shards", default="data/sample/train", help="whose captions fill the palette")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(default_path(TOKENIZER))
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=options.inner_width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with choose_device("auto"):  # a GPU draws them in seconds, a CPU in minutes
        language = LlamaForCausalLM(shape)
    torch.set_default_dtype(torch.float32)
    language.save_pretrained(options.output / "language")
    tokenizer.save_pretrained(options.output / "language")
    del language
    encoder = options.output / "encoder.safetensors"
    save_file(random_encoder(options.library, options.encoder), encoder)
    config = RunConfig(
        language=LanguageConfig(path=str(options.output / "language"), dtype="bfloat16"),
        vision=[EncoderConfig(options.library, options.encoder, str(encoder.resolve()))],
        excitor=ExcitorConfig(layers=max(1, options.layers - 2)),
        prompt=PromptConfig(template="palette"),
        data=DataConfig(train=options.shards),
    )
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    (options.output / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    build_for_training(config).save_pretrained(options.output / "adapter")
    print(options.output / "adapter")


def random_encoder(library: str, name: str) -> dict[str, Tensor]:
    """Tensors as the library's own weights files hold them."""
    net = open_clip.create_model(name) if library == "open_clip" else timm.create_model(name, num_classes=0)
    return {key: tensor.contiguous() for key, tensor in net.state_dict().items()}


if __name__ == "__main__":
    main()
