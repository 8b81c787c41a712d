"""Help, version, man pages: what people read before they use it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ckpt import VERSION
from ckpt.cli.call import Command
from ckpt.cli.group import COMMANDS, ckpt
from ckpt.cli.lazy import Group
from ckpt.cli.main import main
from ckpt.cli.manual import pages

ROOT = Path(__file__).parents[2]
PATHS = {" ".join(path): found for path, found in ckpt.below()}


def test_ckpt_has_an_example_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:\n  ckpt run" in shown
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("path", PATHS)
def test_every_command_has_help_with_an_example_and_takes_json(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example:\n  ckpt {path} " in f"{shown.rstrip()} "
    assert "--json" in shown
    found = PATHS[path]
    assert found.name == path.rsplit(maxsplit=1)[-1]
    if isinstance(found, Command):
        names = [name for section in found.sections.values() for name in section]
        assert len(names) == len(set(names)) == len({param.name for param in found.params} & set(names))
        assert all(f"\n{section}:\n" in shown for section in found.sections)


@pytest.mark.parametrize("path", [path for path, found in PATHS.items() if isinstance(found, Group)])
def test_a_group_names_every_command_and_wants_one(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = PATHS[path]
    assert isinstance(group, Group)
    assert main([path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown and line in shown for name, (_, line) in group.table.items())
    assert main([path, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "Missing command."
    assert main([path, "nonsense"]) == 2
    assert f"No such command 'nonsense'.\nSee 'ckpt {path} --help'." in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ckpt ")


@pytest.mark.parametrize("unknown", ["guardian"])
def test_what_is_not_there_is_no_command(unknown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([unknown]) == 2
    assert f"No such command '{unknown}'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    heavy = [
        "rich",
        "zstandard",
        "cryptography",
        "pycriu",
        "google.protobuf",
        "paramiko",
        "numpy",
        "msgpack",
        "importlib.metadata",
        "asyncio",
        "subprocess",
        "ckpt.model",
        "ckpt.host",
        "ckpt.store",
    ]
    program = (
        f"import sys; from ckpt.cli.main import main; main([{option!r}]); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr.strip() == "[]"


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


def test_the_man_pages_are_those_of_the_commands() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "man").glob("*.1")}
    assert written == pages(), "run scripts/man"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_CKPT_COMPLETE" in capsys.readouterr().out
