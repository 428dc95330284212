"""The contract with the installed transformers: Auto classes, pipeline, streamers, device maps, quantisation, assisted
decoding, and the round trip through folders and a Hub."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import metadata_load
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    TextIteratorStreamer,
    pipeline,
)

from excitor_mm.adapter import CARD, CONFIG, TENSORS
from excitor_mm.cli import main
from excitor_mm.config import Prompts
from excitor_mm.data.samples import clean_caption
from excitor_mm.errors import AdapterError, ConfigError, DataError
from excitor_mm.hub import ExcitorForImageTextToText, ExcitorHubConfig, ExcitorProcessor
from excitor_mm.model import ExcitorModel
from excitor_mm.templates import Turn
from tests.conftest import COLOURS, jpeg
from tests.hub.stand_in import hub


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS[:3]:
        (folder / f"{colour}.jpg").write_bytes(jpeg(colour))
    return [str(folder / f"{colour}.jpg") for colour in COLOURS[:3]]


@pytest.fixture(scope="module")
def captions(tiny_adapter: Path, pictures: list[str]) -> list[str]:
    return ExcitorModel.from_pretrained(tiny_adapter).caption(pictures)


@pytest.fixture(scope="module")
def processor(tiny_adapter: Path) -> ExcitorProcessor:
    return AutoProcessor.from_pretrained(tiny_adapter)


@pytest.fixture(scope="module")
def model(tiny_adapter: Path) -> ExcitorForImageTextToText:
    return AutoModelForImageTextToText.from_pretrained(tiny_adapter)


def new_text(processor: ExcitorProcessor, inputs, ids: torch.Tensor) -> list[str]:
    return [text.strip() for text in processor.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])]


def test_auto_classes_give_the_captions_of_the_adapter(tiny_adapter, model, processor, pictures, captions) -> None:
    assert isinstance(AutoConfig.from_pretrained(tiny_adapter), ExcitorHubConfig)
    assert isinstance(processor, ExcitorProcessor)
    inputs = processor(images=pictures, return_tensors="pt", padding=True)
    assert new_text(processor, inputs, model.generate(**inputs)) == captions
    assert len(set(captions)) == 3


def test_pipeline(tiny_adapter: Path, pictures: list[str], captions: list[str]) -> None:
    pipe = pipeline("image-text-to-text", model=str(tiny_adapter))

    def texts(answers) -> list[str]:
        return [clean_caption(row["generated_text"]) for row in answers]

    assert texts(pipe(pictures, text=["", "", ""], batch_size=2)) == captions
    assert texts(pipe(Image.open(pictures[0]), text="")) == captions[:1]
    message = {"role": "user", "content": [{"type": "image", "url": pictures[1]}]}
    assert texts(pipe(text=[message], return_full_text=False)) == captions[1:2]


def test_conversations_are_rendered_as_in_training(model, processor, pictures: list[str]) -> None:
    turns = (Turn("What is it?", answer="a square"), Turn("Which colour?"))
    expected = model.excitor.task_format("vqa").render(processor.tokenizer, turns).ids
    talk = [
        {
            "role": "user",
            "content": [{"type": "image", "path": pictures[0]}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "Which colour?"},
    ]
    inputs = processor.apply_chat_template(talk, tokenize=True, return_dict=True)
    assert inputs["input_ids"].tolist() == [expected]
    assert inputs["image_mask"].tolist() == [True]
    with pytest.raises(DataError, match="open question"):
        processor.apply_chat_template(talk[:2])


def test_a_processor_cannot_ask_with_a_caption_that_the_model_writes(tiny_adapter: Path, pictures: list[str]) -> None:
    asking = ExcitorModel.from_pretrained(tiny_adapter, device="cpu")
    templates = {"vqa": "caption-answer", "caption": "A picture:"}
    asking.config = dataclasses.replace(asking.config, prompts=Prompts(templates))
    content = [{"type": "image", "path": pictures[0]}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(DataError, match="a caption that the model writes first"):
        ExcitorProcessor(asking.processor, tuple(templates)).apply_chat_template(
            [{"role": "user", "content": content}]
        )


def test_streamer_gives_the_text_in_pieces(model, processor, pictures: list[str], captions: list[str]) -> None:
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, kwargs={**processor(images=pictures[0]), "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert clean_caption("".join(pieces)) == captions[0]
    assert len([piece for piece in pieces if piece]) > 1


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(tiny_adapter, processor, pictures, captions, device_map) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_adapter, device_map=device_map)
    inputs = processor(images=pictures).to(model.device)
    assert new_text(processor, inputs, model.generate(**inputs)) == captions


def test_weights_left_on_the_disk_are_refused(tiny_adapter: Path, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "disk" if index == 1 else "cpu" for index in range(3)}
    with pytest.raises(ConfigError, match="device map"):
        AutoModelForImageTextToText.from_pretrained(tiny_adapter, device_map=places)


def test_quantised_base_with_full_precision_blocks(tiny_adapter, processor, pictures, model) -> None:
    """bitsandbytes in 8 bit, on the CPU: only the frozen linears are quantised, and the text stays nearly as likely."""
    quantised = AutoModelForImageTextToText.from_pretrained(
        tiny_adapter, device_map="cpu", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    keys = quantised.excitor.language.model.layers[-1].self_attn.k_proj
    assert type(keys.base).__name__ == "Linear8bitLt"
    assert {p.dtype for p in quantised.excitor.trainables().values()} == {torch.float32}
    inputs = processor(images=pictures)
    with torch.no_grad():
        exact, rough = (m(**inputs).logits[:, -1].float() for m in (model, quantised))
    similarity = torch.cosine_similarity(exact, rough)
    assert (similarity > 0.98).all()
    assert not torch.equal(exact, rough)


def test_assisted_decoding_gives_the_same_text(model, processor, pictures, language_folder: Path) -> None:
    inputs = processor(images=pictures[0])
    alone = model.generate(**inputs)
    assistant = LlamaForCausalLM.from_pretrained(language_folder)
    assert torch.equal(model.generate(**inputs, assistant_model=assistant), alone)
    assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=3), alone)


def test_labels_give_the_loss_of_training(model, processor, pictures: list[str]) -> None:
    inputs = processor(images=pictures)
    labels = inputs["input_ids"].clone()
    summed, count = model.excitor(**inputs, labels=labels)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, summed / count)


def test_several_images_for_one_text_are_refused(processor, pictures: list[str]) -> None:
    with pytest.raises(DataError, match="2 images"):
        processor(images=[[pictures[0], pictures[1]]], text="")


def test_saved_adapters_are_equal_and_carry_a_card(model, tiny_adapter: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {TENSORS, CONFIG, CARD, "config.json"}
    again, first = load_file(tmp_path / "saved" / TENSORS), load_file(tiny_adapter / TENSORS)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    facts = metadata_load(tmp_path / "saved" / CARD)
    assert facts["pipeline_tag"] == "image-text-to-text"


def test_adapters_from_before_config_json_still_load(tiny_adapter, tmp_path, pictures, captions) -> None:
    shutil.copytree(tiny_adapter, tmp_path / "old")
    (tmp_path / "old" / "config.json").unlink()
    assert ExcitorModel.from_pretrained(tmp_path / "old").caption(pictures) == captions
    assert ExcitorForImageTextToText.from_pretrained(tmp_path / "old").excitor.caption(pictures) == captions


def test_no_folder_and_no_repository_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError, match="holds no excitor_config"):
        ExcitorModel.from_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="no folder, and the Hub"):
        ExcitorForImageTextToText.from_pretrained("nobody/nothing", local_files_only=True)


ROUND_TRIP = """
import sys
from transformers import AutoModelForImageTextToText, pipeline
import excitor_mm.hub
from excitor_mm.cli import main
from excitor_mm.data.samples import clean_caption

folder, report, picture = sys.argv[1:]
AutoModelForImageTextToText.from_pretrained(folder).push_to_hub("someone/by-method")
assert main(["push", folder, "someone/by-command", "--report", report]) == 0
for name in ("someone/by-method", "someone/by-command"):
    answer = pipeline("image-text-to-text", model=name)(picture, text="")
    print(ascii(clean_caption(answer[0]["generated_text"])))
assert main(["caption", picture, "--adapter", "someone/by-command", "--output", folder + "/captions.jsonl"]) == 0
"""


def test_round_trip_through_a_hub(tiny_adapter, tmp_path: Path, pictures, captions) -> None:
    """A new process, because the Hub's address is read when huggingface_hub is imported."""
    folder, report, store = tmp_path / "adapter", tmp_path / "report.json", tmp_path / "hub"
    shutil.copytree(tiny_adapter, folder)
    (folder / "notes.txt").write_text("not for the public")
    facts = {"scores": {"CIDEr": 40.1}, "intervals": {"CIDEr": [31.0, 50.2]}, "count": 61, "references": "coco"}
    report.write_text(json.dumps({**facts, "references_hash": "abcd", "shuffled_control": {"CIDEr": 6.8}}))
    store.mkdir()
    with hub(store) as address:
        done = subprocess.run(
            [sys.executable, "-c", ROUND_TRIP, str(folder), str(report), pictures[0]],
            capture_output=True,
            text=True,
            timeout=240,
            env={
                **os.environ,
                "HF_ENDPOINT": address,
                "HF_TOKEN": "hf_stand_in",
                "HF_HOME": str(tmp_path / "home"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == [ascii(captions[0])] * 2
    rows = (folder / "captions.jsonl").read_text().splitlines()
    assert [json.loads(row)["caption"] for row in rows] == [captions[0]]
    for name in ("by-method", "by-command"):
        stored = {path.name for path in (store / "someone" / name).iterdir()}
        assert stored == {TENSORS, CONFIG, CARD, "config.json"}
    card = (store / "someone" / "by-command" / CARD).read_text()
    assert "| CIDEr | 40.10 | 31.00 to 50.20 |" in card
    results = metadata_load(store / "someone" / "by-command" / CARD)["model-index"][0]["results"]
    assert results[0]["metrics"][0]["value"] == 40.1


def test_pushing_what_is_no_adapter_is_a_sentence(tmp_path: Path, capsys) -> None:
    assert main(["push", str(tmp_path), "someone/nothing"]) == 2
    assert "holds no excitor_config.json" in capsys.readouterr().err
