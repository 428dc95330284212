"""Did training damage the language model? Base against tuned on text, in one run, question by question.

    <output>/mmlu.jsonl     one row a question: the letters that base and tuned choose, and their log-probabilities
    <output>/settings.json  of these rows; an interrupted run goes on where it stopped
    <output>/report.json    scores x100 with 95 % intervals, for `excitor-mm compare`

Both are measured on the same questions and the same tokens, so every difference is a paired one: its interval comes
from resampling questions (or blocks of text) and looking at base and tuned together.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excitor_mm.data.mmlu import SHOTS, read_mmlu
from excitor_mm.data.pipeline import stack_pixels
from excitor_mm.errors import DataError
from excitor_mm.evaluate.reports import FILE, make_report, write_report_files
from excitor_mm.files import read_json, read_rows, write_json
from excitor_mm.likelihood import TextScores, score_text
from excitor_mm.metrics.bootstrap import Bootstrap, Floats, interval
from excitor_mm.mmlu import answer_questions, score_answers, score_subjects
from excitor_mm.model import ExcitorModel
from excitor_mm.references import Id

ROWS = "mmlu.jsonl"
SETTINGS = "settings.json"
START, CONTINUATION = 24, 24
"""Tokens of a paragraph that are given, and tokens written greedily after them."""


def measure_forgetting(
    model: ExcitorModel,
    text: Path,
    output: Path,
    *,
    adapter: str,
    mmlu: Path | None = None,
    per_subject: int | None = None,
    image: str | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure and write the report.

    Args:
        model: from `ExcitorModel.from_pretrained`.
        text: a file whose perplexity is taken; its paragraphs are also continued greedily.
        output: folder.
        adapter: its name, for the report.
        mmlu: see `read_mmlu`; None: text only.
        per_subject: questions of each subject, drawn with a fixed seed; None: all.
        image: a picture that the tuned model is shown meanwhile.
        batch_size: questions at a time.
        overwrite: forget the rows of an earlier run.

    Returns:
        The report.

    Raises:
        DataError: files that cannot be used, or rows of other settings in `output`.
    """
    pixels = None if image is None else model.processor.pixels(image)
    visual, _ = model.visual_prompts(**stack_pixels([pixels]))
    content = read_text(text)
    subjects = read_mmlu(mmlu, per_subject) if mmlu is not None else []
    settings = {
        "adapter": adapter,
        "base": model.config.language_fingerprint,
        "dtype": str(model.language.dtype).removeprefix("torch."),
        "image": image,
        "questions": {subject.name: [question.number for question in subject.questions] for subject in subjects},
    }
    rows = _resume(output, settings, overwrite)
    rows = answer_questions(model, subjects, visual, rows, output / ROWS, batch_size)
    scores, intervals, perplexity = _compare_texts(model, content, visual, batch_size)
    if rows:
        answered = score_answers(rows)
        scores, intervals = {**answered[0], **scores}, {**answered[1], **intervals}
    questions = [question for subject in subjects for question in subject.questions]
    truth: dict[Id, list[str]] = {question.id: [question.prompt(), question.answer] for question in questions}
    report = make_report(
        "forgetting",
        scores,
        predictions=output / ROWS,
        references=str(mmlu or text),
        truth={**truth, "text": [content]},
        split="test" if mmlu else None,
        count=len(questions),
        subset_of=sum(subject.available for subject in subjects) or None,
        intervals=intervals,
        perplexity=perplexity,
        text=text.name,
        shots=SHOTS,
        fewer_shots=sum(row["shots"] < SHOTS for row in rows),
        by_subject=score_subjects(rows),
        **{name: settings[name] for name in ("adapter", "dtype", "image")},
    )
    write_report_files(output / FILE, report, rows, ROWS)
    return report


def read_text(path: Path) -> str:
    """A text long enough for a perplexity.

    Raises:
        DataError: it is not, or no UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable UTF-8 text ({error}): give a plain text file.") from error
    if len(content.split()) < 100:
        raise DataError(f"{path} has {len(content.split())} words: give a text of at least 100.")
    return content


def _resume(output: Path, settings: dict[str, Any], overwrite: bool) -> list[dict[str, Any]]:
    """The rows of an interrupted run with the same settings."""
    noted, path = output / SETTINGS, output / ROWS
    if path.exists() and not overwrite:
        if not noted.exists() or read_json(noted) != settings:
            raise DataError(f"{path} holds answers of other settings: add --overwrite or change --output.")
        return read_rows(path) if path.stat().st_size else []
    path.unlink(missing_ok=True)
    write_json(noted, settings)
    return []


def _compare_texts(
    model: ExcitorModel, content: str, visual: Tensor | None, batch_size: int
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, float]]:
    """Perplexity, agreement of the next token, and of greedy continuations; the last value is both perplexities."""
    ids = model.processor.tokenizer.encode(content)
    window = min(1024, model.language.config.max_position_embeddings)
    with model.base_model():
        base = score_text(model, ids, visual, window)
    tuned = score_text(model, ids, visual, window)
    sums = np.stack([base.losses, tuned.losses, base.tokens], axis=1)

    def change(summed: Floats) -> float:
        return 100.0 * math.expm1((summed[1] - summed[0]) / summed[2])

    totals = sums.sum(axis=0)
    same = _same_by_block(base, tuned)
    continued = _continuations(model, content, visual, batch_size)
    scores = {
        "perplexity change": change(totals),
        "same next token": float(100.0 * same.sum() / totals[2]),
        "same continuation": float(continued.mean()),
    }
    blocks = Bootstrap(len(sums))
    agreement = np.stack([100.0 * same, base.tokens], axis=1)
    intervals = {
        "perplexity change": interval(blocks.scores(sums, change)),
        "same next token": interval(blocks.scores(agreement, lambda summed: summed[0] / summed[1])),
        "same continuation": interval(Bootstrap(len(continued)).means(continued)),
    }
    perplexity = {"base": math.exp(totals[0] / totals[2]), "tuned": math.exp(totals[1] / totals[2])}
    return scores, intervals, perplexity


def _same_by_block(base: TextScores, tuned: TextScores) -> Floats:
    """How often both find the same token likeliest, in each block."""
    ends = np.cumsum(base.tokens)[:-1]
    return np.array([block.sum() for block in np.split((base.greedy == tuned.greedy).astype(float), ends)])


@torch.no_grad()
def _continuations(model: ExcitorModel, content: str, visual: Tensor | None, batch_size: int) -> Floats:
    """float[paragraphs], how much of the greedy continuation is the same from its first token on, x100."""
    encode = model.processor.tokenizer.encode
    paragraphs = [encode(part)[:START] for part in content.split("\n\n") if part.strip()]
    paragraphs = [part for part in paragraphs if len(part) == START] or [encode(content)[:START]]
    found = []
    for start in range(0, len(paragraphs), batch_size):
        ids = torch.tensor(paragraphs[start : start + batch_size], device=model.device)
        seen = None if visual is None else visual.expand(len(ids), *visual.shape[1:])
        options: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "visual_prompts": seen,
            "max_new_tokens": CONTINUATION,
            "min_new_tokens": CONTINUATION,
            "do_sample": False,
        }
        with model.base_model():
            base = model.language.generate(**options)[:, START:]  # type: ignore[operator]
        tuned = model.language.generate(**options)[:, START:]  # type: ignore[operator]
        found += (base == tuned).int().cumprod(dim=1).float().mean(dim=1).mul(100).tolist()
    return np.array(found)


def format_forgetting(report: dict[str, Any]) -> str:
    """A short table for the terminal."""
    lines = [
        f"{report['adapter']}: {report['count']} questions"
        + (f" of {report['subset_of']}" if report["subset_of"] else "")
        + f", {report['shots']} shots; text {report['text']}; {report['dtype']}"
        + (f"; shown {report['image']}" if report["image"] else ""),
        f"  {'perplexity':<20}{report['perplexity']['base']:8.2f} base, {report['perplexity']['tuned']:.2f} tuned",
    ]
    for name, score in report["scores"].items():
        low, high = report["intervals"][name]
        lines.append(f"  {name:<20}{score:8.2f}  (95 %: {low:.2f} to {high:.2f})")
    return "\n".join(lines)
