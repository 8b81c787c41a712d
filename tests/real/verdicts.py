"""What the rules say of a real workload, and what CRIU really does with it."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.command import Ckpt

from ckpt.host.inspection import snapshot
from ckpt.host.preflight import checking
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Rule
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.units import Pid

SEIZE_S = 2


def findings(
    pids: Iterable[int], rules: Iterable[Rule], options: DumpOptions | None = None, cgroup: str = ""
) -> tuple[Finding, ...]:
    """What these rules find."""
    taken = snapshot.take([Pid(pid) for pid in pids], cgroup, None)
    return checking.check(Facts(taken, options or DumpOptions(), cgroup), rules=rules)


def rules_of(found: Iterable[Finding], *severities: Severity) -> list[str]:
    """The names of the rules that found something of these severities (of any, if none is named), each once."""
    return sorted({finding.rule for finding in found if not severities or finding.severity in severities})


def one(found: Iterable[Finding], rule: str) -> Finding:
    """The only finding of this rule."""
    matching = [finding for finding in found if finding.rule == rule]
    assert len(matching) == 1, list(found)
    return matching[0]


class BareVerdict:
    """CRIU without ckpt: what it says of one tree; the options are those that ckpt always gives."""

    def __init__(self, criu: Path, folder: Path) -> None:
        self._criu = criu
        self._images = folder / "images"

    def dump(self, pid: int, *options: str, leave_running: bool = True) -> str:
        """The errors of a dump of this tree, "" if it succeeded."""
        self._images.mkdir(exist_ok=True)
        more = [*options, *(["--leave-running"] if leave_running else [])]
        return self._run("dump", "--tree", str(pid), "--link-remap", "--network-lock", "skip", *more)

    def restore(self, *options: str) -> str:
        """The errors of a restore of what was dumped last, "" if it succeeded."""
        return self._run("restore", "--restore-detached", *options)

    def _run(self, act: str, *options: str) -> str:
        command = [
            self._criu,
            act,
            "--images-dir",
            self._images,
            "--log-file",
            f"{act}.log",
            "-v4",
            "--file-locks",
        ]
        if act == "dump":
            command += ["--timeout", str(SEIZE_S)]
        done = subprocess.run([*command, *options], check=False, capture_output=True, timeout=60, cwd="/")
        log = (self._images / f"{act}.log").read_text(errors="replace")
        errors = [line for line in log.splitlines() if "Error" in line and "RLIMIT_NOFILE" not in line]
        return "\n".join(errors) or f"exit code {done.returncode}" if done.returncode else ""


def blocking(found: Collection[Finding]) -> list[str]:
    """The names of the rules whose findings forbid a dump."""
    return rules_of(found, Severity.BLOCKER)


def forced(ckpt: Ckpt) -> tuple[str, ...]:
    """What lets a dump go on although a blocker is known."""
    return ("--force",) if "--force" in ckpt.run("dump", "--help").stdout else ()
