"""CRIU without ckpt: proves that a subject can be dumped at all, and what ckpt is measured against."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path


def find() -> Path | None:
    """The CRIU that ckpt would take: $CKPT_CRIU, the private prefix, PATH."""
    if named := os.environ.get("CKPT_CRIU"):
        return Path(named)
    private = Path(os.environ.get("CKPT_PREFIX", "/opt/ckpt")) / "criu/bin/criu"
    if private.exists():
        return private
    found = shutil.which("criu")
    return Path(found) if found else None


class BareCriu:
    """Dump and restore by CRIU's own command line."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._dumps: list[Path] = []

    def dump(self, pid: int, images: Path, *, leave_running: bool) -> None:
        """Dump the tree of `pid` into the new directory `images`."""
        images.mkdir()
        self._dumps.append(images)
        options = ["--tree", str(pid), "--link-remap", "--network-lock", "nftables"]
        self._run("dump", images, *options, *(["--leave-running"] if leave_running else []))

    def restore(self, images: Path) -> int:
        """Restore, detached; returns the pid of the root."""
        pid_file = images / "root.pid"
        pid_file.unlink(missing_ok=True)
        self._run("restore", images, "--restore-detached", "--pidfile", str(pid_file))
        return int(pid_file.read_text())

    def close(self) -> None:
        """Remove the network locks of dumps that were not restored, or not to the end."""
        for images in self._dumps:
            ids = re.findall(
                r"CRIU run id = ([0-9a-f-]{21})", (images / "dump.log").read_text(errors="replace")
            )
            for run_id in ids:
                # It fails where there is none.
                subprocess.run(
                    ["nft", "delete", "table", "inet", f"CRIU-{run_id}"], check=False, capture_output=True
                )

    def _run(self, act: str, images: Path, *options: str) -> None:
        command = [
            self._program,
            act,
            "--images-dir",
            images,
            "-v4",
            "--log-file",
            f"{act}.log",
            "--file-locks",
        ]
        done = subprocess.run(
            [*command, *options], check=False, capture_output=True, text=True, timeout=60, cwd="/"
        )
        log = (images / f"{act}.log").read_text(errors="replace").splitlines()
        errors = [line for line in log if "Error" in line]
        assert done.returncode == 0, f"criu {act} failed: {errors} {done.stderr}"
