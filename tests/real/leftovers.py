"""What operations of ckpt have left on a host of the lab, as the kernel and the files there say.

Rule: nothing here is asked of ckpt, and nothing is changed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from harness.lab import Host

_IN_STATE = ("migrations", "operations", "locks")
_OURS = ("ckpt-guardian", "ckpt-holder", "criu")
"""Names of processes that an operation starts and ends."""


def left_on(host: Host, living: Iterable[Path]) -> Iterator[str]:
    """Each thing in a few words.

    Args:
        host: Where it is looked for.
        living: The cgroups of workloads that are to be alive; they and what they lie in are not left over.
    """
    living = list(living)
    state = host.path(host.state)
    for name in _IN_STATE:
        # A hidden one is one that was being made.
        yield from (f"{name}/{path.name}" for path in _inside(state / name))
    for cgroup in _job_cgroups(host):
        if not any(place.is_relative_to(cgroup) or cgroup.is_relative_to(place) for place in living):
            yield f"cgroup {cgroup.relative_to(host.cgroup.path)}"
    command = ["nsenter", f"--net=/proc/{host.init}/ns/net", "nft", "list", "tables"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    yield from (line for line in shown.splitlines() if "CRIU-" in line)
    yield from (f"mount {place}" for place in _mounts_of(host) if place.is_relative_to(host.state))
    for pid in host.own.pids():
        name = _name_of(pid)
        if name in _OURS or is_agent(pid):
            yield f"process {pid} {name}"


def is_agent(pid: int) -> bool:
    """Whether the process is a `ckpt agent`."""
    words = words_of(pid)
    is_one = words[-1:] == [b"agent"] or words[-3:-1] == [b"agent", b"--pages"]
    return is_one and any(word.endswith(b"/ckpt") for word in words)


def words_of(pid: int) -> list[bytes]:
    """The command line of a process; empty if it is gone or has none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return []


def _inside(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _job_cgroups(host: Host) -> list[Path]:
    """The cgroups that ckpt made on the host; the empty folder of all jobs is part of the house."""
    house = (host.cgroup.path, host.cgroup.path / "ckpt")
    return [
        path for path in host.cgroup.tree() if path not in house and not path.is_relative_to(host.own.path)
    ]


def _mounts_of(host: Host) -> list[Path]:
    lines = Path(f"/proc/{host.init}/mountinfo").read_text().splitlines()
    return [place for place in (Path(line.split()[4]) for line in lines) if place != host.state]


def _name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
