"""What the rules say of a real process, and what CRIU says when it is asked to dump it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from real.holding import Holder

from ckpt.host import cgroups
from ckpt.host.inspection import snapshot
from ckpt.host.preflight import checking
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Rule
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.units import ByteCount

SEIZE_S = 2
GHOST_LIMIT = ByteCount(64 << 20)


def findings(
    cgroup: object, rules: Iterable[Rule], options: DumpOptions | None = None
) -> tuple[Finding, ...]:
    """What these rules find in a cgroup."""
    place = str(cgroup)
    taken = snapshot.take(cgroups.processes_below(place), place, None)
    options = options or DumpOptions(ghost_limit_bytes=GHOST_LIMIT)
    return checking.check(Facts(taken, options, place), rules=rules)


def names(found: Iterable[Finding], severity: Severity) -> set[str]:
    """The rules that found something of this severity."""
    return {finding.rule for finding in found if finding.severity is severity}


def criu_errors(criu: Path, holder: Holder, images: Path, *options: str) -> str:
    """What CRIU says against a dump with ckpt's options; "" if it dumped it."""
    images.mkdir()
    command = [criu, "dump", "--tree", str(holder.pid), "--images-dir", images, "--log-file", "dump.log"]
    command += ["-v4", "--leave-running", "--network-lock", "skip", "--file-locks", "--link-remap"]
    command += ["--ghost-limit", str(GHOST_LIMIT), "--timeout", str(SEIZE_S), *options]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    log = (images / "dump.log").read_text(errors="replace")
    errors = "\n".join(line for line in log.splitlines() if "Error" in line)
    return (errors or "it failed") if done.returncode else ""


@contextmanager
def overlay(folder: Path) -> Iterator[Path]:
    """An overlay whose lower layer has the directory `d`, and the files `f` and `g`."""
    lower, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, lower / "d", upper, work, merged):
        directory.mkdir()
    for name in ("f", "g"):
        (lower / name).write_text("content")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", "--lazy", merged], check=True)
