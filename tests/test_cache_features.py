"""Tokens encoded beforehand: training on them is training, and nothing stale or foreign is ever read."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from excitor_mm.cache_features import cache_features, check_cache
from excitor_mm.cli import main
from excitor_mm.config import RunConfig
from excitor_mm.data.index import ShardIndex, write_index, write_shard
from excitor_mm.errors import ConfigError, DataError
from excitor_mm.train import train
from excitor_mm.vision.tower import VisionTower, load_tower
from tests.conftest import make_sample, make_shards


def noise(chooser: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(chooser.integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def config(run_config: RunConfig, tmp_path: Path) -> RunConfig:
    """Three epochs of eight noisy images with crops and flips, and a validation."""
    chooser = np.random.default_rng(0)
    entries = []
    (tmp_path / "noise").mkdir()
    for index, count in enumerate((5, 3)):
        samples = [dataclasses.replace(make_sample(8 * index + n), image=noise(chooser)) for n in range(count)]
        entries.append(write_shard(tmp_path / "noise" / f"tiny-{index:06d}.tar", samples))
    write_index(tmp_path / "noise", ShardIndex("noise", entries))
    held_out = str(make_shards(tmp_path / "held-out", [3]))
    data = dataclasses.replace(
        run_config.data, train=str(tmp_path / "noise"), validation=held_out, crop_scale=(0.3, 0.9), flip=0.5
    )
    settings = dataclasses.replace(run_config.train, steps=3, log_every=1, validate_every=3)
    return dataclasses.replace(run_config, data=data, train=settings)


def with_features(config: RunConfig, name: str, output: Path, **changes: object) -> RunConfig:
    data = dataclasses.replace(config.data, features=name, **changes)
    return dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, output=str(output)))


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows for name in ("loss", "validation_loss", "cider") if name in row]


def no_encoder(*_: object) -> None:
    raise AssertionError("an encoder ran")


def test_training_on_cached_tokens_is_training_bit_for_bit_and_runs_no_encoder(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config)
    expected = losses(Path(config.train.output))
    cache_features(config, name="all", views=5, dtype="float32", batch_size=2)
    cache_features(config, name="one", views=1, dtype="float32")
    cache_features(config, name="half", views=5, dtype="float16")
    monkeypatch.setattr(VisionTower, "encode", no_encoder)
    found = {}
    for name in ("all", "one", "half"):
        train(with_features(config, name, tmp_path / name))
        found[name] = losses(tmp_path / name)
    assert found["all"] == expected  # with a view for every epoch each crop is the one of its epoch
    assert found["one"] != expected  # every epoch saw the crops of epoch 0
    assert found["half"] == pytest.approx(expected, rel=2e-3)
    assert found["half"] != expected


def test_tokens_of_another_configuration_are_refused(config: RunConfig, encoder_file: Path, tmp_path: Path) -> None:
    cache_features(config, name="kept", views=1)
    run = with_features(config, "kept", tmp_path / "run")
    for changes, sentence in (
        ({"crop_scale": (0.5, 1.0)}, "other crops .*0.3.*0.5"),
        ({"flip": 0.0}, "other flips"),
        ({"draft": True}, "other decoding"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train(with_features(config, "kept", tmp_path / "run", **changes))
    other = dataclasses.replace(run, vision=[dataclasses.replace(run.vision[0], weights=None)])
    with pytest.raises(ConfigError, match="other encoders"):
        train(other)
    with pytest.raises(DataError, match="another configuration"):
        cache_features(config, name="kept", views=1, dtype="float32")
    with pytest.raises(DataError, match=r"absent.*does not exist.*cache-features"):
        train(with_features(config, "absent", tmp_path / "run"))
    remote = with_features(config, "kept", tmp_path / "run", train="https://example.org/a.tar")
    with pytest.raises(ConfigError, match="remote"):
        cache_features(remote, name="kept")


def test_an_interrupted_caching_goes_on_and_a_damaged_file_is_a_sentence(config: RunConfig, tmp_path: Path) -> None:
    files = cache_features(config, name="kept", views=2)
    assert len(files) == 2 * 2 + 1
    before = {path: path.stat().st_mtime_ns for path in files}
    files[1].unlink()
    assert cache_features(config, name="kept", views=2) == files
    assert {path for path in files if path.stat().st_mtime_ns != before[path]} == {files[1]}
    files[0].write_bytes(b"cut off")
    with pytest.raises(DataError, match="damaged"):
        train(with_features(config, "kept", tmp_path / "run"))


def test_a_repacked_shard_is_refused(config: RunConfig, tmp_path: Path) -> None:
    cache_features(config, name="kept", views=1)
    make_shards(tmp_path / "other", [5, 4])
    (tmp_path / "other" / "tiny-000001.tar").replace(tmp_path / "noise" / "tiny-000001.tar")
    with pytest.raises(ConfigError, match="other shards.*cache again"):
        train(with_features(config, "kept", tmp_path / "run"))


def test_an_image_that_could_not_be_encoded_is_a_bad_sample(config: RunConfig, tmp_path: Path, capsys) -> None:
    samples = [make_sample(0), dataclasses.replace(make_sample(1), image=b"\x89PNG cut off"), make_sample(2)]
    (tmp_path / "flawed").mkdir()
    entry = write_shard(tmp_path / "flawed" / "tiny-000000.tar", samples)
    write_index(tmp_path / "flawed", ShardIndex("flawed", [entry]))
    run = with_features(config, "kept", tmp_path / "run", train=str(tmp_path / "flawed"), validation=None)
    cache_features(run, name="kept")
    assert "bad sample 000000000001 in tiny-000000.tar: not an image" in capsys.readouterr().err
    train(run)
    assert "bad sample 000000000001 in tiny-000000.tar: no cached tokens" in capsys.readouterr().err


def test_the_command_says_how_to_train_with_them(config: RunConfig, tmp_path: Path, capsys) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert main(["cache-features", "--config", str(path), "--views", "2"]) == 0
    assert "5 files" in (out := capsys.readouterr().out)
    assert "--data.features features" in out


@pytest.mark.parametrize(("views", "flip", "told"), [(2, 0.5, True), (3, 0.5, False), (1, 0.0, False)])
def test_fewer_views_than_visits_are_told(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], views: int, flip: float, told: bool
) -> None:
    """Three visits of each image; known crops again are worse captions later. A whole image has one view."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6, batch_size=4))
    changes = {"flip": flip} | ({} if flip else {"crop_scale": (1.0, 1.0)})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
    cache_features(config, name="f", views=views)
    check_cache(with_features(config, "f", tmp_path / "run"), load_tower(config.vision))
    assert ("visits each image 3.0 times, but" in capsys.readouterr().err) == told


def test_tower_takes_tokens_for_pixels(config: RunConfig) -> None:
    tower = load_tower([*config.vision, *config.vision])
    pixels = [torch.randn(2, 3, 160, 160), torch.randn(2, 3, 160, 160)]
    assert torch.equal(tower(tower.encode(pixels)), tower(pixels))
