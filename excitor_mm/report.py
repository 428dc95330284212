"""report.html: scores, curves, gates, pictures and a table in one file, with nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excitor_mm.charts import curves, gate_map, series
from excitor_mm.config import SourceConfig
from excitor_mm.data.images import BadImage, load_image
from excitor_mm.data.shards import list_shards, read_shard
from excitor_mm.data.tasks import TASKS
from excitor_mm.files import read_rows, write_text

THUMBNAIL = 224  # pixels
ANY_FORMAT = "QCM-A"  # of ScienceQA problems, for their question and the right answer
SHOWN = 24  # pictures; the best and the worst half of them

STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: #2a6fdb; --other: #d9822b }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
nav a { margin-right: 1rem } .wide { overflow-x: auto }
table { border-collapse: collapse }
td, th { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
.sortable th { cursor: pointer; position: sticky; top: 0; background: Canvas }
.sortable th::after { content: " \\2195" }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
figure img { width: 100%; display: block } figcaption { padding: .5rem .75rem } small { opacity: .75 }
svg { width: 100%; height: auto } code { white-space: pre-wrap; overflow-wrap: anywhere }
"""

SORT = """
for (const head of document.querySelectorAll(".sortable th")) head.onclick = () => {
  const place = [...head.parentNode.children].indexOf(head), body = head.closest("table").tBodies[0]
  const cell = row => row.children[place].textContent, turn = head.dataset.up = head.dataset.up == 1 ? -1 : 1
  const order = (a, b) => turn * (isNaN(cell(a)) ? cell(a).localeCompare(cell(b)) : cell(a) - cell(b))
  body.append(...[...body.rows].sort(order))
}
"""


@dataclass(frozen=True)
class Picture:
    """One image with what was said about it."""

    image_id: int | str
    image: bytes
    """The encoded image."""
    text: str
    """The caption or answer."""
    references: tuple[str, ...]
    score: float
    """x100, of this text."""


SCORED = {
    "caption": ("per_image.jsonl", "image_id", "caption", "CIDEr"),
    "vqa": ("per_question.jsonl", "question_id", "answer", "accuracy"),
    "scienceqa": ("per_question.jsonl", "question_id", "answer", "right"),
}
"""Task -> the file beside report.json with a row for each text, and in it the names of id, text and score."""


def read_scored(output: Path, task: str) -> dict[Any, tuple[str, float]]:
    """Id -> text and its score, x100, of the rows that lie beside a report.json; `task` is one of `SCORED`."""
    file, key, text, metric = SCORED[task]
    rows = read_rows(output.with_name(file))
    return {row[key]: (row[text], row[metric] * (100.0 if isinstance(row[metric], bool) else 1.0)) for row in rows}


def collect_pictures(shards: str, task: str, said: Mapping[Any, tuple[str, float]]) -> list[Picture]:
    """Join what a model said with the images and references of shards, best first.

    Args:
        shards: see `list_shards`.
        task: of `data.tasks.TASKS`; its ids are those of `said`, and its questions stand before the answers.
        said: id -> text and its score, x100.
    """
    pictures = []
    for shard in list_shards(shards) if said else ():
        for sample in read_shard(shard, lambda _: None):
            for one in TASKS[task](sample, ANY_FORMAT):
                if one.id in said:
                    text, score = said[one.id]
                    question = "" if task == "caption" else one.turns[-1].text + " "
                    references = tuple(dict.fromkeys(one.answers))
                    pictures.append(Picture(one.id, sample.image or b"", question + text, references, score))
    return sorted(pictures, key=lambda picture: -picture.score)


def write_score_report(
    output: Path, task: str, shards: str, report: Mapping[str, Any], commands: Sequence[str]
) -> None:
    """report.html beside a report.json and its rows.

    Args:
        output: report.json, written already.
        task: of `SCORED`.
        shards: hold the images.
        report: what report.json holds.
        commands: what made it.
    """
    facts = {"Scored": f"{report['count']} of {report['references']} ({report['references_hash']})"}
    for name, score in report["scores"].items():
        low, high = report["intervals"][name]
        facts[name] = f"{score:.2f} (95 %: {low:.2f} to {high:.2f})"
    write_report(
        output.with_name("report.html"),
        title=f"{task}: {report['predictions']}",
        facts=facts,
        pictures=collect_pictures(shards, task, read_scored(output, task)),
        metric=SCORED[task][-1],
        commands=commands,
    )


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    pictures: Sequence[Picture] = (),
    metrics: Sequence[Mapping[str, Any]] = (),
    metric: str = "CIDEr",
    commands: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        path: report.html.
        title: heading.
        facts: name -> value, a table at the top.
        pictures: best first; with more than `SHOWN`, the best and the worst are shown, and all are in the table.
        metrics: lines of metrics.jsonl, for the curves and gates.
        metric: what the pictures' scores are.
        commands: what made these figures.
    """
    rows = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(v)}" for k, v in facts.items())
    sections = {
        "Curves": _curves(metrics),
        "Gates by layer": gate_map([(row["step"], row["gates"]) for row in metrics if row.get("gates")]),
        **_cards(pictures, metric),
        "All of them": _table(pictures, metric),
        "Commands": "".join(f"<pre><code>{html.escape(line)}</code></pre>" for line in commands),
    }
    shown = {name: content for name, content in sections.items() if content}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in shown)
    body = "".join(f'<h2 id="{_anchor(name)}">{name}</h2>{content}' for name, content in shown.items())
    page = f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>
<style>{STYLE}</style><h1>{html.escape(title)}</h1><nav>{links}</nav><div class=wide><table>{rows}</table></div>
{body}<script>{SORT}</script></html>
"""
    write_text(path, page)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Loss and the validation score; rewards; validation loss; rate and gradient."""
    scores = [name for name in ("cider", "vqa_accuracy", "choice_accuracy") if series(metrics, name)]
    score = (f"validation {scores[0]}", series(metrics, scores[0])) if scores else ("", ())
    charts = [
        curves(("training loss", series(metrics, "loss")), score),
        curves(("reward", series(metrics, "reward")), ("its baseline", series(metrics, "baseline"))),
        curves(("validation loss", series(metrics, "validation_loss"))),
        curves(("learning rate", series(metrics, "learning_rate")), ("gradient", series(metrics, "grad_norm"))),
    ]
    return "".join(charts) or ("<p>Too few steps for a curve.</p>" if metrics else "")


def _cards(pictures: Sequence[Picture], metric: str) -> dict[str, str]:
    half = SHOWN // 2
    groups = {"Pictures": pictures}
    if len(pictures) > SHOWN:
        groups = {"Best": pictures[:half], "Worst": pictures[-half:]}
    cards = {name: "".join(_card(picture, metric) for picture in group) for name, group in groups.items()}
    return {name: f"<div class=cards>{content}</div>" for name, content in cards.items() if content}


def _card(picture: Picture, metric: str) -> str:
    try:
        image = load_image(picture.image)
    except BadImage:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    references = "<br>".join(html.escape(text) for text in picture.references)
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption><b>{html.escape(picture.text)}'
        f"</b><br><small>{metric} {picture.score:.0f}<br>{references}</small></figcaption></figure>"
    )


def _table(pictures: Iterable[Picture], metric: str) -> str:
    """Every text; a click on a heading sorts."""
    rows = "".join(
        f"<tr><td>{html.escape(str(p.image_id))}<td>{p.score:.1f}<td>{html.escape(p.text)}"
        f"<td>{html.escape(' / '.join(p.references))}"
        for p in pictures
    )
    heads = f"<thead><tr><th>image<th>{html.escape(metric)}<th>text<th>references</thead>"
    return f"<div class=wide><table class=sortable>{heads}<tbody>{rows}</tbody></table></div>" if rows else ""


def write_training_report(output: Path, source: SourceConfig | None) -> None:
    """report.html of a run folder, from its metrics.jsonl, validation.jsonl and config.yaml.

    Args:
        output: the run folder.
        source: the first validation source, for the pictures; None: there was no validation.
    """
    metrics = read_rows(output / "metrics.jsonl")
    last = {name: value for row in metrics for name, value in row.items() if not isinstance(value, list)}
    pictures: list[Picture] = []
    if source and (output / "validation.jsonl").exists():
        said = {row["id"]: (row["text"], row["score"]) for row in read_rows(output / "validation.jsonl")}
        pictures = collect_pictures(source.shards, source.task, said)
    config = output / "config.yaml"
    write_report(
        output / "report.html",
        title=f"Training: {output.name}",
        facts={name: f"{value:.6g}" for name, value in last.items()},
        pictures=pictures,
        metrics=metrics,
        metric="score",
        commands=[f"excitor-mm train --config {config}", config.read_text(encoding="utf-8")],
    )
