"""Imports go one way. A module may use what stands in a lower row, or its own package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [
    {"errors", "ranges"},
    {"console", "config", "templates", "palette", "files"},
    {"prompts"},
    {"branches"},
    {"defaults", "excitor", "switches", "metrics", "data"},
    {"card", "vision"},
    {"llama", "charts", "adapter", "references", "pictures", "caption_files"},
    {"processor", "language", "lora"},
    {"model", "heatmap", "cache_features"},
    {"likelihood", "answer", "batches", "prepare", "parallel"},
    {"queries"},
    {
        "chat",
        "generate",
        "doctor",
        "explain",
        "mmlu",
        "predict",
        "evaluate",
        "submit",
        "validate",
        "report",
        "describe",
        "checkpoint",
    },
    {"step", "scst"},
    {"train", "hub", "serve", "forgetting"},
    {"preflight", "options"},
    {"commands", "harnesses"},
    {"cli"},
    {"__init__", "__main__"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}


def imports(path: Path) -> set[str]:
    """First name below excitor_mm of everything a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("excitor_mm.")}
    return found


def test_dependencies_point_down() -> None:
    for path in (ROOT / "excitor_mm").rglob("*.py"):
        own = path.relative_to(ROOT / "excitor_mm").parts[0].removesuffix(".py")
        for name in imports(path) - {own}:
            assert ROW[name] < ROW[own], f"{path.name} imports {name}"


def test_data_and_metrics_know_no_model() -> None:
    for path in (ROOT / "excitor_mm" / "metrics").rglob("*.py"):
        assert imports(path) <= {"errors", "metrics"}
    for path in (ROOT / "excitor_mm" / "data").rglob("*.py"):
        assert not imports(path) & {"model", "vision", "llama", "excitor"}


def test_only_one_file_touches_transformers_modelling() -> None:
    users = {p.name for p in (ROOT / "excitor_mm").rglob("*.py") if "transformers.models" in p.read_text()}
    assert users == {"llama.py"}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = "import sys, excitor_mm.cli as c; c.make_parser()\n"
    code += "print([m for m in ('torch', 'timm', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_files_stay_short() -> None:
    for path in [*(ROOT / "excitor_mm").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        assert len(path.read_text().splitlines()) < 300, path
