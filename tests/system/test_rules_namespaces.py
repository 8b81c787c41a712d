"""What the rules say of namespaces is what a dump and a restore by ckpt really do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.cgroups import unified_mount
from harness.command import Ckpt
from harness.subjects import Workload
from real.asked import Asked
from real.checking import findings, names

from ckpt.host.preflight import namespace_rules
from ckpt.model.findings import Severity

pytestmark = pytest.mark.system

RULES = namespace_rules.RULES

TOOLS = """
import ctypes, os, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
def until(true):
    while not true(): time.sleep(0.005)
def inside(*options):
    held['p'] = subprocess.Popen(['unshare', *options, 'sleep', '600'])
    def name(pid): return open(f'/proc/{pid}/comm').read()
    def children(): return open(f"/proc/{held['p'].pid}/task/{held['p'].pid}/children").read().split()
    until(lambda: name(held['p'].pid) == 'sleep\\n' or any(name(each) == 'sleep\\n' for each in children()))
"""

# In the namespace: its own input and output, into the cgroup, a session of its own.
ENTER = 'exec </dev/null >"$0/inside" 2>&1; echo 0 >"$1/cgroup.procs"; {more} shift; exec "$@"'


class Inside:
    """A workload whose programs are started in namespaces of their own; only they are in its cgroup."""

    def __init__(self, workload: Workload, *options: str, more: str = "") -> None:
        self._workload = workload
        self._options = options
        self._more = more

    def spawn(self, command: list[str], folder: Path) -> int:
        script = ENTER.format(more=self._more)
        start = ["unshare", *self._options, "setsid", "sh", "-c", script, str(folder)]
        return self._workload.spawn([*leave(), *start, str(self._workload.cgroup), *command], folder)


def leave() -> list[str]:
    """What unshare(1) is started with: where it forks it waits for its child, and is not of the workload."""
    return ["sh", "-c", f'echo $$ >"{unified_mount()}/cgroup.procs"; exec "$@"', "sh"]


ROOTS = {
    "uts": (("--uts",), ""),
    "ipc": (("--ipc",), ""),
    "net": (("--net",), ""),
    "mnt": (("--mount",), ""),
    "mnt with a mount of its own": (("--mount",), "mount -t tmpfs none /mnt;"),
    "pid": (("--pid", "--fork"), ""),
}

LOST = {
    "user": (("--user", "--map-root-user"), "user-namespace"),
    "user, pid and mnt": (("--user", "--map-root-user", "--pid", "--fork", "--mount"), "user-namespace"),
}

NESTED = {
    "cgroup": ("--cgroup",),
    "ipc": ("--ipc",),
    "uts": ("--uts",),
    "user": ("--user",),
    "mnt": ("--mount",),
    "net": ("--net",),
    "pid": ("--pid", "--fork"),
    "time": ("--time", "--fork"),
}
#: CRIU dumps these, and cannot restore them; of "mnt" it refuses some, by the mounts that it finds inside.
DUMPED = ("net", "mnt")


def force(ckpt: Ckpt, workload: Workload, *options: str) -> int:
    return ckpt.run("dump", "--force", "--cgroup", workload.cgroup, *options).returncode


@pytest.mark.parametrize("case", ROOTS)
def test_namespaces_of_a_tree_that_a_restore_brings_back_are_not_held_against_it(
    case: str, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    options, more = ROOTS[case]
    subject = Asked(Inside(workload, *options, more=more), tmp_path)  # type: ignore[arg-type]
    kind = case.partition(" ")[0]
    seen = subject.do(f"answer = os.readlink('/proc/self/ns/{kind}')")
    assert seen != os.readlink(f"/proc/self/ns/{kind}")
    assert findings(workload.cgroup, RULES) == ()
    name = ckpt.new_job_name()
    ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--name", name)
    workload.await_empty()
    ckpt("restore", name)
    assert subject.do(f"answer = os.readlink('/proc/self/ns/{kind}')") != os.readlink(f"/proc/self/ns/{kind}")


@pytest.mark.parametrize("case", LOST)
def test_a_user_namespace_is_told_as_it_can_be_dumped_and_not_restored(
    case: str, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    options, rule = LOST[case]
    Asked(Inside(workload, *options), tmp_path)  # type: ignore[arg-type]
    assert names(findings(workload.cgroup, RULES), Severity.BLOCKER) == {rule}
    name = ckpt.new_job_name()
    assert force(ckpt, workload, "--stop", "--name", name) == 0
    workload.await_empty()
    assert ckpt.run("restore", name).returncode == 22


@pytest.mark.parametrize("kind", NESTED)
def test_a_namespace_below_the_root_is_told(
    kind: str, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    subject = Asked(workload, tmp_path)
    subject.do(TOOLS)
    assert findings(workload.cgroup, RULES) == ()
    subject.do(f"inside({', '.join(map(repr, NESTED[kind]))})")
    found = findings(workload.cgroup, RULES)
    assert names(found, Severity.BLOCKER) >= {"nested-namespace"}
    assert any(f"lives in another {kind} namespace" in finding.message for finding in found)
    name = ckpt.new_job_name()
    dumped = force(ckpt, workload, "--stop", "--name", name)
    assert dumped in ((0, 21) if kind in DUMPED else (21,))
    if dumped == 0:
        workload.await_empty()
        assert ckpt.run("restore", name).returncode == 22


def test_a_time_namespace_for_children_is_told(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    subject = Asked(workload, tmp_path)
    subject.do(f"{TOOLS}\nanswer = libc.unshare(0x80)")
    assert names(findings(workload.cgroup, RULES), Severity.BLOCKER) == {"time-for-children"}
    assert force(ckpt, workload) == 21


def test_a_pid_namespace_for_children_is_fine(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    subject = Asked(workload, tmp_path)
    subject.do(f"{TOOLS}\nanswer = libc.unshare(0x20000000)")
    assert findings(workload.cgroup, RULES) == ()
    name = ckpt.new_job_name()
    ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--name", name)
    workload.await_empty()
    ckpt("restore", name)
    assert subject.do("answer = 5") == 5


def test_a_mount_over_one_of_the_hosts_is_told(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    Asked(Inside(workload, "--pid", "--fork", "--mount", "--mount-proc"), tmp_path)  # type: ignore[arg-type]
    (finding,) = findings(workload.cgroup, RULES)
    assert (finding.rule, finding.severity) == ("covered-mount", Severity.BLOCKER)
    assert "its own proc over the host's mount at /proc" in finding.message
    # By force, too: the restore would show the host's.
    assert force(ckpt, workload) == 30


def test_a_container_is_told(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    subject = Asked(Inside(workload, "--mount"), tmp_path)  # type: ignore[arg-type]
    root = tmp_path / "root"
    root.mkdir()
    subject.do(
        f"{TOOLS}\ndef pivot(root):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'none', root], check=True)\n"
        "    subprocess.run(['mkdir', root + '/old', root + '/tmp'], check=True)\n"
        "    subprocess.run(['mount', '--rbind', '/tmp', root + '/tmp'], check=True)\n"
        "    os.chdir(root); subprocess.run(['pivot_root', '.', 'old'], check=True); os.chroot('.')\n"
        f"pivot({str(root)!r})"
    )
    found = findings(workload.cgroup, RULES)
    assert any(finding.rule == "other-root" and "(a container)" in finding.message for finding in found)
    name = ckpt.new_job_name()
    assert force(ckpt, workload, "--stop", "--name", name) != 0 or ckpt.run("restore", name).returncode != 0


def test_a_tree_in_a_pid_namespace_whose_init_stands_outside_is_told(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    outer = ["unshare", "--pid", "--fork", "sh", "-c", 'sleep 600 & "$@"', "sh"]
    started = workload.spawn
    workload.spawn = lambda command, folder: started(  # type: ignore[method-assign]
        [
            *leave(),
            *outer,
            "setsid",
            "sh",
            "-c",
            ENTER.format(more=""),
            str(folder),
            str(workload.cgroup),
            *command,
        ],
        folder,
    )
    Asked(workload, tmp_path)
    assert names(findings(workload.cgroup, RULES), Severity.BLOCKER) == {"not-pid-init"}
    name = ckpt.new_job_name()
    assert force(ckpt, workload, "--name", name) != 0 or ckpt.run("restore", name).returncode != 0
