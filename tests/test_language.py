"""How the frozen language model is loaded: where its answers end, and in which precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from excitor_mm.config import LanguageConfig
from excitor_mm.language import load_language, native_dtype


@pytest.mark.parametrize("ending", [None, 7, [7, 8]])
def test_generation_stops_at_the_tokenizers_end_and_at_the_models_own(
    ending: int | list[int] | None, language_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(language_folder, tmp_path / "language")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": ending}))
    llama, tokenizer = load_language(LanguageConfig(path=str(folder), dtype="float32"))
    own = ending if isinstance(ending, list) else [ending] if ending else []
    for end in (tokenizer.eos_token_id, *own):

        def say(_module: object, _inputs: object, logits: torch.Tensor, end: int = end) -> torch.Tensor:
            return logits.index_fill(-1, torch.tensor([end]), 1e4)

        hook = llama.lm_head.register_forward_hook(say)
        ids = llama.generate(torch.tensor([[1, 20, 30]]), max_new_tokens=5, do_sample=False)
        hook.remove()
        assert ids[0, 3:].tolist() == [end]


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_computes_it(
    features: dict[str, bool], dtype: torch.dtype, language_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    llama, _ = load_language(LanguageConfig(path=str(language_folder)))
    assert {parameter.dtype for parameter in llama.parameters()} == {dtype}


@pytest.mark.parametrize("native", [False, True])
def test_auto_asks_the_gpu_where_there_is_one(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not native})
    assert native_dtype() == (torch.bfloat16 if native else torch.float32)
