"""What one test leaves on the machine, and its removal, whatever happened in the test."""

from __future__ import annotations

import os
import secrets
import subprocess
from contextlib import suppress
from pathlib import Path

from harness.cgroups import Cgroup, unified_mount
from harness.processes import cgroup_of, kill, marked

SESSION = f"ckpt-test-{secrets.token_hex(3)}"


class Traces:
    """The mark of one test, and everything that carries it."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"{SESSION}-{secrets.token_hex(3)}"
        self.folder = folder
        self._cgroups: list[Cgroup] = []
        self._foreign: list[Cgroup] = []

    def cgroup(self, suffix: str = "") -> Cgroup:
        """A new cgroup of this test's."""
        mount = unified_mount()
        assert mount is not None
        return self.adopt(Cgroup(mount / f"{self.mark}{suffix}")).create()

    def adopt(self, cgroup: Cgroup) -> Cgroup:
        """Remove this one as well: with all that runs in it if it bears the mark, else only when it is empty."""
        (self._cgroups if self.mark in str(cgroup) else self._foreign).append(cgroup)
        return cgroup

    def processes(self) -> list[int]:
        """Every process of this test that lives."""
        found = set(marked(self.mark))
        for cgroup in self._cgroups:
            found.update(cgroup.pids())
        return sorted(found - {os.getpid()})

    def remove(self) -> None:
        """Thaw and end all processes, remove cgroups, mounts and shared memory."""
        for cgroup in self._cgroups_of_processes():
            with suppress(OSError):
                (cgroup / "cgroup.freeze").write_text("0")
        # What dies may have a parent that starts it anew, or a child that was hidden: until none is left.
        while pids := self.processes():
            kill(pids)
        for cgroup in [*self._cgroups, *self._named_cgroups()]:
            cgroup.remove()
        for cgroup in self._foreign:
            with suppress(OSError):
                cgroup.path.rmdir()
        for mount in mounts_below(self.folder):
            subprocess.run(["umount", "--lazy", mount], check=True)
        for name in os.listdir("/dev/shm"):
            if self.mark in name:
                os.unlink(f"/dev/shm/{name}")

    def _cgroups_of_processes(self) -> set[Path]:
        """Where processes of this test are, as far as that is not the root."""
        found = set()
        for pid in self.processes():
            with suppress(AssertionError):
                found.add(cgroup_of(pid))
        return found - {unified_mount()}

    def _named_cgroups(self) -> list[Cgroup]:
        """The cgroups that ckpt made for this test's jobs."""
        mount = unified_mount()
        assert mount is not None
        return [
            Cgroup(Path(folder) / name)
            for folder, names, _ in os.walk(mount)
            for name in names
            if self.mark in name
        ]


def mounts_below(folder: Path) -> list[str]:
    """Mount points in this folder, the newest first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mount for mount in reversed(mounts) if Path(mount).is_relative_to(folder)]
