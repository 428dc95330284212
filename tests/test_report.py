"""report.html: everything is in the one file, and it is well formed."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

from excitor_mm.config import RunConfig
from excitor_mm.report import Picture, write_report
from excitor_mm.train import train
from tests.conftest import COLOURS, jpeg


class Page(HTMLParser):
    """Texts of cells, pictures, rectangles and outside addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images, self.addresses, self.tags = 0, set[str](), list[str]()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.images += tag == "img"
        places = {values.get(name) or "" for name in ("src", "href", "action")} - {""}
        self.addresses |= {place for place in places if not place.startswith(("data:", "#"))}


def test_training_writes_curves_gates_and_pictures(run_config: RunConfig, tmp_path: Path) -> None:
    settings = dataclasses.replace(run_config.train, steps=6, log_every=2, validate_every=3)
    data = dataclasses.replace(run_config.data, validation=run_config.data.train)
    train(dataclasses.replace(run_config, train=settings, data=data))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["gates"]) for row in rows if "gates" in row] == [2, 2, 2]  # two excited layers, three log lines
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "| data | shards (caption) |" in card
    page = Page(tmp_path / "run" / "report.html")
    assert page.addresses == set()
    assert page.images == 8
    assert page.tags.count("rect") == 6
    assert page.tags.count("polyline") >= 4
    assert f"excitor-mm train --config {tmp_path / 'run' / 'config.yaml'}" in page.text


def test_texts_of_models_cannot_break_the_page(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src="http://evil.example/x">'
    pictures = [Picture(evil, jpeg(colour), evil, (evil,), 50.0) for colour in COLOURS]
    write_report(tmp_path / "r.html", title=evil, facts={evil: evil}, pictures=pictures, commands=[evil])
    page = Page(tmp_path / "r.html")
    assert page.tags.count("script") == 1  # our own, which sorts
    assert page.addresses == set()
    assert page.images == len(COLOURS)


def test_of_many_pictures_the_best_and_worst_are_shown_and_all_are_listed(tmp_path: Path) -> None:
    pictures = [Picture(i, jpeg("red"), f"text {i}", (), 100.0 - i) for i in range(40)]
    pictures[3] = dataclasses.replace(pictures[3], image=b"damaged")  # left out of the cards, kept in the table
    write_report(tmp_path / "r.html", title="t", facts={}, pictures=pictures)
    page = Page(tmp_path / "r.html")
    assert page.images == 23
    assert all(f"<td>text {i}<" in page.text for i in range(40))
    assert [name for name in ("best", "worst", "all-of-them", "commands") if f'id="{name}"' in page.text] == [
        "best",
        "worst",
        "all-of-them",
    ]
