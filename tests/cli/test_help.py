"""Help, version, man pages: what people read before they use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from ckpt.cli.group import COMMANDS, ckpt
from ckpt.cli.main import main
from ckpt.cli.manual import pages

ROOT = Path(__file__).parents[2]


def test_ckpt_has_an_example_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:\n  ckpt run" in shown
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_takes_json(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example:\n  ckpt {name} " in f"{shown.rstrip()} "
    assert "--json" in shown
    assert name == ckpt.get_command(click.Context(ckpt), name).name


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ckpt ")


@pytest.mark.parametrize(
    "later",
    ["check", "migrate", "diff", "prune", "export", "import", "push", "pull", "guard", "agent"],
)
def test_what_is_not_there_yet_is_no_command(later: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([later]) == 2
    assert f"No such command '{later}'" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    heavy = ["rich", "zstandard", "pycriu", "google.protobuf", "paramiko", "numpy", "msgpack", "ckpt.model"]
    program = (
        "import sys; from ckpt.cli.main import main; main(['--help']); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr.strip() == "[]"


def test_the_man_pages_are_those_of_the_commands() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "man").glob("*.1")}
    assert written == pages(), "run scripts/man"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_CKPT_COMPLETE" in capsys.readouterr().out
