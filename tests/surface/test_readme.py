"""README's commands work: the cheap ones are run, all others are at least parsed, and the Python block runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from excitor_mm.cli import main
from excitor_mm.commands import make_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("*.md")]


def blocks(language: str, heading: str = "", text: str = README) -> list[str]:
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0] if heading else text
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def commands(heading: str = "", text: str = README) -> list[str]:
    found = [line.split("  #")[0].strip() for block in blocks("sh", heading, text) for line in block.splitlines()]
    return [line for line in found if line]


def test_every_command_parses() -> None:
    found = [
        shlex.split(line)
        for page in DOCS
        for line in commands(text=page.read_text())
        if line.startswith("excitor-mm")
    ]
    assert len(found) > 20
    parser = make_parser()
    for words in found:
        parser.parse_args([word for word in words[1:] if word != "-"])


def test_tests_that_docs_name_exist() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = [
        (file, name) for page in DOCS for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page.read_text())
    ]
    assert len(named) > 25
    for file, name in named:
        assert f"def {name}(" in sources[file], (file, name)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", README)
    assert {"demo", "test", "check"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_try_it(in_root: None, capsys) -> None:
    for line in commands("Try it"):
        words = shlex.split(line)
        if words[0] == "python":
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.split()) > 3
        else:
            assert main(words[1:]) == 0, line


def test_python_block(in_root: None, capsys) -> None:
    (block,) = blocks("python")
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) == block.count("print(")


def test_files_that_readme_and_docs_name_exist() -> None:
    for page in DOCS:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)
