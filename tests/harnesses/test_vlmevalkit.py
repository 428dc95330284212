"""VLMEvalKit's message form on our model. Run by `make harnesses`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("vlmeval", reason="an optional extra: `make harnesses` installs it and runs this test")

from excitor_mm.config import RunConfig
from excitor_mm.model import ExcitorModel
from excitor_mm.train import train
from tests.conftest import jpeg


def test_two_samples(run_config: RunConfig, tmp_path: Path) -> None:
    """Through VLMEvalKit's own inference loop, over a data set of two images."""
    import pandas as pd
    from vlmeval.config import supported_VLM
    from vlmeval.dataset.image_caption import ImageCaptionDataset
    from vlmeval.inference import infer_data
    from vlmeval.smp import encode_image_file_to_base64, load

    from excitor_mm.harnesses.vlmevalkit import Excitor

    with torch.enable_grad():  # importing vlmeval turns gradients off for the whole process
        adapter = train(run_config)
    colours = ("red", "blue")
    for colour in colours:
        (tmp_path / f"{colour}.jpg").write_bytes(jpeg(colour))
    dataset = ImageCaptionDataset.__new__(ImageCaptionDataset)
    images = [encode_image_file_to_base64(str(tmp_path / f"{colour}.jpg")) for colour in colours]
    dataset.data = pd.DataFrame({"index": [0, 1], "image": images, "question": "Describe.", "answer": "[]"})
    dataset.dataset_name, dataset.meta_only, dataset.img_root = "two", False, str(tmp_path / "images")
    supported_VLM["excitor"] = partial(Excitor, adapter=str(adapter), device="cpu")
    infer_data("excitor", "excitor", str(tmp_path), dataset, str(tmp_path / "out.pkl"))
    expected = ExcitorModel.from_pretrained(adapter).caption([jpeg(colour) for colour in colours])
    assert list(load(str(tmp_path / "out.pkl")).values()) == expected
