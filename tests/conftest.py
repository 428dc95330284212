"""Tiny real parts: a random two-layer LLaMA with a tokenizer, a random ViT file, shards made on the fly."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from excitor_mm.config import (
    DataConfig,
    DecodingConfig,
    EncoderConfig,
    ExcitorConfig,
    LanguageConfig,
    LoraConfig,
    PromptConfig,
    Prompts,
    RunConfig,
    TrainConfig,
)
from excitor_mm.data.index import ShardIndex, write_index, write_shard
from excitor_mm.data.pipeline import Example, collate
from excitor_mm.data.samples import Sample
from excitor_mm.model import build_model
from excitor_mm.prompts import Rendered, answer_ids, prompt_ids

# Tests run side by side (`make test`), so each computes on one core, as do the processes it starts: sums depend on it.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "gray")


def interruptible() -> None:
    """A `preexec_fn`: a child of a job in the background would ignore SIGINT, as its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def jpeg(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (48, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def make_sample(number: int, captions: int = 2) -> Sample:
    colour = COLOURS[number % len(COLOURS)]
    texts = (f"A {colour} square.", f"A picture of a square in {colour}.")[:captions]
    return Sample(f"{number:012d}", number, jpeg(colour), texts)


def make_shards(folder: Path, counts: list[int], captions: int = 2) -> Path:
    """A folder of shards with `counts` samples each, and its index."""
    folder.mkdir(parents=True)
    entries, number = [], 0
    for index, count in enumerate(counts):
        samples = [make_sample(number + i, captions) for i in range(count)]
        number += count
        entries.append(write_shard(folder / f"tiny-{index:06d}.tar", samples))
    write_index(folder, ShardIndex("tiny", entries))
    return folder


def llama_config(key_heads: int = 2, layers: int = 3, **changes: object) -> LlamaConfig:
    values = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**values, **changes})


def write_language(folder: Path) -> Path:
    """A transformers folder: random LLaMA and a byte-level tokenizer of 300 pieces."""
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config()).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"A picture of a {c} square in {c}." for c in COLOURS] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


def teach_captions(folder: Path) -> Path:
    """Train the language model of `write_language` until it writes the samples' captions, each about as often."""
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    prompt = prompt_ids(tokenizer, "Caption:")
    answers = [answer_ids(tokenizer, "Caption:", text) for n in range(8) for text in make_sample(n).captions]
    texts = [Rendered([*prompt, *answer], [(len(prompt), len(prompt) + len(answer))], cut=0) for answer in answers]
    inputs = collate([Example("", text, None) for text in texts], tokenizer.pad_token_id).inputs
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def write_poisoned(language: Path, folder: Path) -> Path:
    """The same language model, to which "purple", the word of sample 6 alone, is not a number."""
    shutil.copytree(language, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = [sample.captions for sample in map(make_sample, range(8))]
    others = {
        i for number in (0, 1, 2, 3, 4, 5, 7) for text in texts[number] for i in tokenizer(f" {text}").input_ids
    }
    (word,) = set(tokenizer(" purple").input_ids) - others
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"][word] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_encoder(path: Path) -> Path:
    """Random weights of timm's smallest test ViT."""
    torch.manual_seed(1)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def tiny_run(language: Path, encoder: Path, shards: Path, output: Path) -> RunConfig:
    """A complete run on coloured squares."""
    return RunConfig(
        language=LanguageConfig(path=str(language), dtype="float32"),
        vision=[EncoderConfig("timm", "test_vit", str(encoder))],
        excitor=ExcitorConfig(layers=2, prompts=4, rank=4, visual_rank=4),
        prompt=PromptConfig(template="palette", palette_size=6),
        data=DataConfig(train=str(shards), workers=0, shuffle_buffer=8),
        train=TrainConfig(output=str(output), steps=4, batch_size=8, learning_rate=1e-2, device="cpu"),
        decoding=DecodingConfig(beams=1, max_new_tokens=12),
    )


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "test_vit.safetensors")


@pytest.fixture
def run_config(language_folder: Path, encoder_file: Path, tmp_path: Path) -> RunConfig:
    return tiny_run(language_folder, encoder_file, make_shards(tmp_path / "shards", [5, 3]), tmp_path / "run")


@pytest.fixture(scope="session")
def tiny_adapter(language_folder: Path, encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder with random blocks whose gates are wide open: each colour gets a caption of its own."""
    torch.manual_seed(2)
    model = build_model(
        LanguageConfig(path=str(language_folder), dtype="float32"),
        [EncoderConfig("timm", "test_vit", str(encoder_file))],
        ExcitorConfig(layers=2, prompts=4, rank=4, visual_rank=4, gate_start=4.0),
        Prompts({"caption": "A picture:", "vqa": "Question: {question}\nAnswer:"}),
        DecodingConfig(beams=1, max_new_tokens=12),
        LoraConfig(),
    )
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a folder with five pictures."""
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    for index, colour in enumerate(COLOURS[:5]):
        (folder / f"{index}.jpg").write_bytes(jpeg(colour))
    return folder.parent


@pytest.fixture
def poisoned(run_config: RunConfig, language_folder: Path, tmp_path: Path) -> RunConfig:
    """The same run with a language model to which "purple", the word of sample 6 alone, is not a number."""
    folder = write_poisoned(language_folder, tmp_path / "poisoned")
    prompt = PromptConfig(template="Caption:")
    return dataclasses.replace(run_config, language=LanguageConfig(path=str(folder), dtype="float32"), prompt=prompt)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference files that are not part of the repository."""
    folder = os.environ.get("EXCITOR_MM_SHARED")
    if not folder:
        pytest.skip("EXCITOR_MM_SHARED is not set: it names a folder with published reference files")
    return Path(folder)
