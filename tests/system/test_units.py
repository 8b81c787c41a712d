"""The systemd units: what systemd says of them, and what their installer leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.command import PROGRAM

pytestmark = pytest.mark.system

INSTALL = Path(__file__).parents[2] / "scripts/systemd/install"
UNIT = "ckpt-suspend.service"


def install(root: Path, *arguments: object) -> None:
    command = [INSTALL, "--root", root, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def written(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    install(tmp_path, "--ckpt", PROGRAM)
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_units(root: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze is not None, "systemd-analyze is not installed: run scripts/setup --dev"
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{root}/etc/systemd/system:"}
    # Of sessions there is no unit that could be looked at; their drop-in is the same text as the other one.
    command = [analyze, "verify", "--man=no", UNIT, "user@0.service"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "ckpt" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_unit_starts_the_program_that_was_named(root: Path) -> None:
    lines = written(root)[f"etc/systemd/system/{UNIT}"].splitlines()
    started = [line.partition("=")[2] for line in lines if line.startswith("Exec")]
    assert [line.lstrip("-").split()[:3] for line in started] == [
        [str(PROGRAM), "resume", "--all"],
        [str(PROGRAM), "suspend", "--all"],
    ]


def test_a_shutdown_while_jobs_are_being_brought_back_suspends_them_too(root: Path) -> None:
    # systemd.service(5): ExecStop= is only for a service whose start has come to its end.
    lines = written(root)[f"etc/systemd/system/{UNIT}"].splitlines()
    assert [line.partition("=")[0] for line in lines if " suspend --all" in line] == ["ExecStopPost"]


def test_what_was_installed_twice_is_removed_without_a_trace(root: Path) -> None:
    once = written(root)
    install(root, "--ckpt", PROGRAM)
    assert written(root) == once
    install(root, "--remove")
    assert written(root) == {}
    assert list((root / "etc/systemd/system").iterdir()) == []
