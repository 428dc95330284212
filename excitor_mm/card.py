"""The model card of an adapter: README.md for people, with front matter that the Hub reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from excitor_mm.config import DecodingConfig, EncoderConfig, LanguageConfig
from excitor_mm.defaults import SOURCES

PAGE = """# {name}

An adapter of [LLaMA-Excitor](https://arxiv.org/abs/2404.00913), made with excitor-mm. It holds the trained blocks
alone; the frozen parts below come from where they are published, and others are refused by their fingerprint.

| | |
|---|---|
{facts}

## Use

```python
from transformers import pipeline

import excitor_mm.hub  # tells transformers what this is

captioner = pipeline("image-text-to-text", model="{name}")
print(captioner("photo.jpg", text="")[0]["generated_text"])
```

## Scores

{scores}

## Limits and licences

It says what is not in the picture with the same confidence as what is: do not use it where a wrong text does harm.
The frozen parts keep their licences, which bind whoever uses the adapter: {licences}.
"""


def model_card(
    name: str,
    *,
    language: LanguageConfig,
    vision: Sequence[EncoderConfig],
    decoding: DecodingConfig,
    training: Mapping[str, str],
    report: Mapping[str, Any] | None = None,
) -> str:
    """The text of README.md.

    Args:
        name: of the adapter, or its id on the Hub.
        language, vision: the frozen parts.
        decoding: how it writes unless told otherwise.
        training: free text of the adapter's makers.
        report: report.json of an evaluation; None: the card says that there is none.
    """
    from huggingface_hub import ModelCardData

    parts = {"language model": language.path}
    parts |= {f"encoder {encoder.model} ({encoder.library})": encoder.weights or "random" for encoder in vision}
    bases = [_source(part)[0] for part in parts.values()]
    facts = {kind: " from ".join(dict.fromkeys([part, _source(part)[0]])) for kind, part in parts.items()}
    facts |= {"decoding": ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(decoding).items())}
    facts |= training
    data = ModelCardData(
        pipeline_tag="image-text-to-text",
        library_name="excitor-mm",
        base_model=[base for base in bases if base.count("/") == 1 and not Path(base).exists()] or None,
        base_model_relation="adapter",
        tags=["llama-excitor", "image-captioning"],
        model_name=name,
        eval_results=_results(report) if report else None,
        ignore_metadata_errors=True,
    )
    page = PAGE.format(
        name=name,
        facts="\n".join(f"| {kind} | {value} |" for kind, value in facts.items()),
        scores=_table(report) if report else "Not evaluated yet: see `excitor-mm evaluate`.",
        licences="; ".join(f"{part}: {_source(part)[1]}" for part in parts.values()),
    )
    return f"---\n{data.to_yaml()}\n---\n{page}"


def _source(part: str) -> tuple[str, str]:
    """The published model behind a part, and its licence."""
    return SOURCES.get(part, (part, "see its own card"))


def _table(report: Mapping[str, Any]) -> str:
    of = f", a subset of {report['subset_of']}" if report.get("subset_of") else ""
    lines = [
        f"{report['count']} images or questions of {report['references']} ({report['references_hash']}){of}; x100.",
        "",
        "| metric | score | 95 % interval |",
        "|---|---|---|",
    ]
    for metric, score in report["scores"].items():
        low, high = report["intervals"][metric]
        lines.append(f"| {metric} | {score:.2f} | {low:.2f} to {high:.2f} |")
    for metric, score in report.get("shuffled_control", {}).items():
        lines.append(f"| {metric}, answers moved to other images | {score:.2f} | |")
    return "\n".join(lines)


def _results(report: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    results = []
    for metric, score in report["scores"].items():
        low, high = report["intervals"][metric]
        results.append(
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=report["references_hash"],
                dataset_name=report["references"],
                metric_type=metric.lower(),
                metric_name=f"{metric} x100 (95 %: {low:.2f} to {high:.2f})",
                metric_value=round(score, 2),
            )
        )
    return results
