"""report.html: everything is in the one file, and it is well formed."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

from excitor_mm.cli import main
from excitor_mm.config import RunConfig
from excitor_mm.data.index import write_shard
from excitor_mm.data.samples import Question
from excitor_mm.report import Picture, write_report
from excitor_mm.train import train
from tests.conftest import COLOURS, jpeg, make_sample


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


def test_questions_get_a_page_too(tmp_path: Path) -> None:
    """VQA from one picture, ScienceQA with and without one: the best first, and every row in the table."""
    questions = tuple(Question(i, f"Which colour {i}?", ("red",) * 10) for i in range(2))
    write_shard(tmp_path / "vqa.tar", [dataclasses.replace(make_sample(0), questions=questions)])
    said = tmp_path / "answers.json"
    said.write_text(json.dumps([{"question_id": 0, "answer": "blue"}, {"question_id": 1, "answer": "red"}]))
    place = ["--predictions", str(said), "--output", str(tmp_path / "out" / "report.json")]
    shards = str(tmp_path / "vqa.tar")
    assert main(["evaluate", "vqa", *place, "--references", shards, "--pictures", shards]) == 0
    page = Page(tmp_path / "out" / "report.html")
    assert page.images == 2
    assert page.text.index("Which colour 1? red") < page.text.index("Which colour 0? blue")
    assert f"excitor-mm evaluate vqa --predictions {said} --references {shards} --rule official" in page.text

    problems = {
        str(i): {
            **{
                "question": f"Which {i}?",
                "choices": ["yes", "no"],
                "answer": 0,
                "hint": "",
                "lecture": "",
                "task": "",
            },
            **{"solution": "", "subject": "natural science", "grade": "grade2", "split": "test", "topic": ""},
            "image": "image.png" if i else None,
        }
        for i in range(2)
    }
    folder = tmp_path / "test" / "1"
    folder.mkdir(parents=True)
    (folder / "image.png").write_bytes(jpeg("red"))
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    packing = ["--problems", str(tmp_path / "problems.json"), "--images", str(tmp_path), "--split", "test"]
    assert main(["pack-scienceqa", *packing, "--output", str(tmp_path / "science")]) == 0
    said.write_text(json.dumps([{"question_id": str(i), "answer": f"The answer is {'BA'[i]}."} for i in range(2)]))
    scoring = ["--problems", str(tmp_path / "problems.json"), "--pictures", str(tmp_path / "science")]
    assert main(["evaluate", "scienceqa", *place, *scoring]) == 0
    page = Page(tmp_path / "out" / "report.html")
    assert page.images == 1
    assert page.text.index("<td>Question: Which 1?") < page.text.index("<td>Question: Which 0?")
