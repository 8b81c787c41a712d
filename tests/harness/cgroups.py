"""The cgroups (version 2) of the tests: each named after its test, removed with all that is in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from harness.waiting import await_condition


def unified_mount() -> Path | None:
    """Where cgroup version 2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


class Cgroup:
    """One cgroup below the root of the version 2 hierarchy."""

    def __init__(self, path: Path) -> None:
        assert path != unified_mount(), "the root of all cgroups is not a test's"
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def create(self) -> Cgroup:
        """Make it, if it is not there."""
        self.path.mkdir(exist_ok=True)
        return self

    def exists(self) -> bool:
        return self.path.is_dir()

    def tree(self) -> list[Path]:
        """It and all below, the deepest first."""
        return [Path(folder) for folder, _, _ in os.walk(self.path, topdown=False)]

    def pids(self) -> list[int]:
        """Every process in it and below, zombies excepted."""
        found: list[int] = []
        for folder in self.tree():
            # ENODEV and ENOENT: somebody removed it meanwhile.
            with suppress(OSError):
                found += map(int, (folder / "cgroup.procs").read_text().split())
        return found

    def members(self) -> list[int]:
        """Every process in it and below, zombies included."""
        mount = unified_mount()
        assert mount is not None
        own = f"/{self.path.relative_to(mount)}"
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
                at = next(line[3:] for line in groups if line.startswith("0::"))
                if at == own or at.startswith(f"{own}/"):
                    found.append(int(pid))
        return found

    def is_frozen(self) -> bool:
        """Whether the kernel says that all of it stands still."""
        return "frozen 1" in (self.path / "cgroup.events").read_text()

    def kill(self) -> None:
        """Thaw all, kill all, wait until nothing is left in it."""
        for folder in self.tree():
            with suppress(OSError):
                (folder / "cgroup.freeze").write_text("0")
        with suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        await_condition(lambda: not self.pids(), lambda: f"{self} to be empty of {self.pids()}")

    def remove(self) -> None:
        """Kill what is in it, then remove it with all below; nothing happens if it is not there."""
        if not self.exists():
            return
        self.kill()
        await_condition(self._try_to_remove, lambda: f"{self} to be removed")

    def _try_to_remove(self) -> bool:
        for folder in self.tree():
            # EBUSY: the kernel is not done with the last task's end.
            with suppress(OSError):
                folder.rmdir()
        return not self.exists()
