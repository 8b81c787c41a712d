"""images/subjects/identity.py, the program that breaks by other inode numbers; and ways to give it such numbers."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.subjects import FOLDER, PYTHON
from harness.waiting import await_condition

SUBJECT = FOLDER / "identity.py"


def compile_static(into: Path) -> Path:
    """Compile the C subject that no patch of libc can reach; returns the program."""
    program = into / "stats-static"
    command = ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, FOLDER / "stats.c"]
    subprocess.run(command, check=True)
    return program


class Victim:
    """The program, however it was started; `files` is what it lives on, `control` how it is asked."""

    def __init__(self, files: Path, control: Path, compiled: Path) -> None:
        control.mkdir()
        self.files = files
        self._control = control
        self._programs = {"--stats": compiled / "stats", "--stats-static": compiled / "stats-static"}

    def command(self) -> list[str]:
        """How it is started."""
        programs = [str(word) for option in self._programs.items() for word in option]
        folders = ["--files", str(self.files), "--control", str(self._control)]
        return [PYTHON, str(SUBJECT), *folders, *programs]

    def await_ready(self) -> None:
        """Wait until it holds everything."""
        await_condition((self._control / "answer").exists, "the victim to be ready")

    def ask(self, order: str) -> dict[str, Any]:
        """Give it an order; returns its answer."""
        command = [PYTHON, str(SUBJECT), "--control", str(self._control), "--ask", order]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{order}: {done.stdout}{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def wrong(self, order: str = "check") -> dict[str, str]:
        """What it finds wrong with itself: "property, of what" -> "what it was -> what it is"."""
        return {
            f"{finding['name']}, {finding['of']}": f"{finding['was']} -> {finding['now']}"
            for finding in self.ask(order)["findings"]
            if not finding["right"]
        }

    def rows(self) -> dict[str, tuple[int, str]]:
        """What is in its databases, and sqlite's verdict, read from outside when it does not run."""
        return {name: rows_of(self.files / f"{name}.db") for name in ("rollback", "wal")}


def rows_of(database: Path) -> tuple[int, str]:
    with closing(sqlite3.connect(database)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM facts").fetchone()
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    return rows, verdict


def replace_files(folder: Path) -> None:
    """Put a copy in the place of every file, as rsync does; the directories stay the same."""
    copies = copied(folder)
    for place, _, names in os.walk(copies):
        for name in names:
            copy = Path(place, name)
            copy.rename(folder / copy.relative_to(copies))
    shutil.rmtree(copies)


def replace_folder(folder: Path) -> None:
    """Put a copy in the place of the whole folder, as one does who unpacks a backup."""
    copies = copied(folder)
    shutil.rmtree(folder)
    copies.rename(folder)


def change_device(mountpoint: Path) -> None:
    """Mount a copy of the image of filesystems.mounted() in its place: all inode numbers stay, the device does not."""
    image, copy, aside = (mountpoint.with_suffix(suffix) for suffix in (".img", ".copy", ".aside"))
    subprocess.run(["sync", "--file-system", mountpoint], check=True)
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    aside.mkdir()
    # While the first has its loop device, the second must take another.
    subprocess.run(["mount", "-o", "loop", copy, aside], check=True)
    subprocess.run(["umount", mountpoint], check=True)
    subprocess.run(["mount", "--move", aside, mountpoint], check=True)


def copied(folder: Path) -> Path:
    """A copy of the folder beside it: hard links, FIFOs, sockets and times are kept, no number is."""
    copies = folder.with_name(f"{folder.name}.copies")
    subprocess.run(["cp", "-a", "--reflink=never", folder, copies], check=True)
    return copies
