"""The documentation builds, what it quotes is in the program, and its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from excitor_mm.cli import main
from excitor_mm.config import RunConfig, from_dict
from tests.conftest import jpeg

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    assert "excitor_mm.model.ExcitorModel.generate" in reference
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    loaded = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="?(https?://[^" >]+)')
    outside = {address for page in pages for address in loaded.findall(page.read_text())}
    assert outside == set()


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}
    assert pages <= named


def test_quoted_messages_are_in_the_program() -> None:
    page = (DOCS / "troubleshooting.md").read_text().replace(r"\`", "\0")
    quoted = [text.replace("\0", "`") for text in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)]
    assert len(quoted) > 20
    sources = "\n".join(path.read_text() for path in (ROOT / "excitor_mm").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # sentences are broken over lines
    assert [text for text in quoted if text not in joined] == []


@pytest.mark.parametrize("page", sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")))
def test_python_blocks_compile(page: str) -> None:
    for block in blocks(page, "python"):
        compile(textwrap.dedent(block), page, "exec")


def test_own_data_becomes_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for colour in ("red", "blue"):
        (tmp_path / "photos" / f"{colour}.jpg").write_bytes(jpeg(colour))
    (block,) = blocks("howto/own-data.md", "python")
    exec(block, {})
    pack, check = blocks("howto/own-data.md", "sh")[0].splitlines()[:2]
    assert main(pack.split()[1:]) == 0
    assert main(check.split()[1:]) == 0


def test_encoders_of_the_page_are_read() -> None:
    (block,) = blocks("howto/own-encoder.md", "yaml")
    assert [encoder.library for encoder in from_dict(RunConfig, yaml.safe_load(block)).vision] == [
        "timm",
        "open_clip",
    ]


def test_the_transformers_page_runs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = blocks("howto/transformers.md", "python")
    exec(block, {})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) >= 3
    assert "Caption:" in "".join(lines[1:])


def test_the_picture_is_our_own_and_stands_alone() -> None:
    drawing = (DOCS / "method.svg").read_text()
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r'(?:href|src)="', drawing) == []
