"""Help, shell completion and the doctor."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from excitor_mm.cli import main
from excitor_mm.commands import COMMANDS, make_parser
from excitor_mm.commands.examples import EXAMPLES


def test_every_command_has_examples_that_parse() -> None:
    parser = make_parser()
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line)
            assert words[: 1 + len(name.split())] == ["excitor-mm", *name.split()]
            parser.parse_args(words[1:])


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_shows_the_examples_whole(command: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {line}\n" in shown for line in EXAMPLES[command])


def test_bash_completes_commands_and_options(tmp_path: Path, capsys) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def complete(*words: str) -> set[str]:
        line = shlex.join(words)
        code = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p excitor-mm | sed 's/.*-F \\([^ ]*\\).*/\\1/') ; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run([bash, "-c", code], capture_output=True, text=True)
        return {word.strip() for word in done.stdout.split("\n")} - {""}

    assert complete("excitor-mm", "capt") == {"caption"}
    assert "--sidecar" in complete("excitor-mm", "caption", "--si")
    assert complete("excitor-mm", "evaluate", "sc") == {"scienceqa"}


def test_the_doctor_says_what_is_there_and_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert main(["doctor"]) == 0
    healthy = capsys.readouterr().out
    assert "[ok] one picture: 'A " in healthy
    assert "!!" not in healthy
    assert str(Path.home()) not in healthy
    monkeypatch.setenv("EXCITOR_MM_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").write_text("not a program")
    assert main(["doctor", "--quick"]) == 1
    ill = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- [!!]")]
    assert [line.split(":")[0].removeprefix("- [!!] ") for line in ill] == [
        "Java",
        "default part smollm2-135m-instruct",
        "default part vit-small-14",
        "default part efficientnet-lite0",
    ]
    assert "excitor-mm fetch-defaults" in ill[-1]
