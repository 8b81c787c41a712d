"""What a bug report tells of this host: each fact as a text.

Rules: every text is bounded. No command line and no environment is read but where it is asked for.
Source: proc(5), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from typing import Any, Final

from ckpt import VERSION
from ckpt.errors import CkptError
from ckpt.host import cgroups
from ckpt.host.criu import engine, locate
from ckpt.host.hostfacts import read_host_facts
from ckpt.host.jobs import JobView
from ckpt.host.masking import command_line, environment_of

_HEAD_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 256 << 10
_ENTRIES_MAX: Final = 50
_CHECK_TIMEOUT_S: Final = 60
_CONFIG_BYTES_MAX: Final = 4 << 20
_CONFIG: Final = re.compile(
    r"^(?:# )?CONFIG_(?:CHECKPOINT_RESTORE|NAMESPACES|\w+_NS|CGROUPS?|CGROUP_\w+|MEMCG|MEM_SOFT_DIRTY|FHANDLE|EVENTFD|EPOLL|"
    r"INOTIFY_USER|FANOTIFY|\w+_DIAG|NF_TABLES\w*|NETFILTER|USERFAULTFD|SECCOMP\w*|RSEQ|IO_URING|FUSE_FS|BLK_DEV_LOOP|"
    r"OVERLAY_FS|TUN|VETH|KCMP|AIO|POSIX_MQUEUE|SYSVIPC|HUGETLBFS|TRANSPARENT_HUGEPAGE|PSI|SECURITY_\w+|X86_5LEVEL|"
    r"X86_USER_SHADOW_STACK|PROC_CHILDREN|PROC_PAGE_MONITOR|PREEMPT\w*)(?:=.*| is not set)$"
)


def bounded(path: str) -> str:
    """The text of a file: its beginning and its end if it is large."""
    with open(path, "rb") as stream:
        head = stream.read(_HEAD_BYTES)
        rest = stream.read(_TAIL_BYTES)
        # What is below /proc has no size to seek from.
        if len(rest) == _TAIL_BYTES:
            stream.seek(-_TAIL_BYTES, os.SEEK_END)
            rest = b"\n[...]\n" + stream.read(_TAIL_BYTES)
    return os.fsdecode(head + rest)


def versions() -> str:
    """Of all that ckpt works with."""
    criu, version = "none", ""
    with suppress(CkptError):
        found = locate.find_criu()
        criu, version = str(found), str(engine.version(found))
    facts = read_host_facts(version, VERSION)
    return as_json(
        {
            "ckpt": VERSION,
            "criu": version,
            "criu_path": criu,
            "kernel": facts.kernel,
            "kernel_build": os.uname().version,
            "architecture": facts.architecture,
            "distribution": facts.distribution,
            "libc": facts.libc,
            "cpu_model": facts.cpu_model,
            "cpu_flags": list(facts.cpu_flags),
            "python": platform.python_version(),
        }
    )


def criu_check() -> str:
    """What CRIU says of this kernel.

    Raises:
        CriuMissing: there is none.
        OSError, SubprocessError: it cannot be run, or does not end.
    """
    done = subprocess.run(
        [locate.find_criu(), "check", "--all"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_CHECK_TIMEOUT_S,
        check=False,
    )
    return os.fsdecode(done.stdout[-_HEAD_BYTES:]) + f"exit code {done.returncode}\n"


def kernel_config() -> str:
    """The lines of the kernel's configuration that CRIU and ckpt depend on."""
    for path in ("/proc/config.gz", f"/boot/config-{os.uname().release}"):
        with suppress(FileNotFoundError):
            with open(path, "rb") as stream:
                text = (gzip.GzipFile(fileobj=stream) if path.endswith(".gz") else stream).read(
                    _CONFIG_BYTES_MAX
                )
            lines = text.decode("utf-8", "replace").splitlines()
            return "\n".join((f"# {path}", *(line for line in lines if _CONFIG.match(line)), ""))
    return "the kernel tells no configuration, and there is none in /boot\n"


def cgroup_layout() -> str:
    """The hierarchies with their controllers, and where this process is in them."""
    lines = []
    for hierarchy in cgroups.hierarchies():
        lines.append(f"{hierarchy.mountpoint}: version {hierarchy.version}")
        lines += [
            f"  {name}: {found}"
            for name in ("cgroup.controllers", "cgroup.subtree_control")
            if (found := cgroups.read_or_empty(hierarchy.mountpoint, name))
        ]
    return "\n".join((*lines, "/proc/self/cgroup:", bounded("/proc/self/cgroup")))


def settings() -> str:
    """What this ckpt was told by its environment, and its limits and rights."""
    names = ("CKPT_STORE", "CKPT_STATE", "CKPT_KEYS", "CKPT_CRIU", "PATH", "TERM", "LANG")
    shown = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    # Whether there is one may matter; which it is, is nobody's business.
    shown += [f"{name} is set" for name in ("CKPT_KEY_FILE", "CKPT_KEY_COMMAND") if name in os.environ]
    return "\n".join((*shown, "", bounded("/proc/self/limits"), bounded("/proc/self/status")))


def job_list(jobs: tuple[JobView, ...], *, with_secrets: bool) -> str:
    """The jobs; with their command lines, directories and environments only if `with_secrets`."""
    return as_json([_job(job, with_secrets=with_secrets) for job in jobs])


def _job(job: JobView, *, with_secrets: bool) -> dict[str, Any]:
    record = job.record
    document: dict[str, Any] = {
        "name": job.name,
        "state": job.state.value,
        "pids": list(job.pids),
        "root": record.root.pid,
        "memory_bytes": job.memory,
        "cgroups": list(record.cgroups),
        "created_ns": record.created,
        "restored_from": record.restored_from,
        "stopped_by": record.stopped_by,
        "exit": None if job.exit is None else {"code": job.exit.code, "signal": job.exit.signal},
    }
    if with_secrets:
        document["argv"] = list(command_line(record.argv))
        document["cwd"] = record.cwd
        document["environment"] = list(command_line(environment_of(record.command.pid))) if job.pids else []
    return document


def as_json(document: Any) -> str:
    """The document for people to read."""
    return json.dumps(document, indent=2) + "\n"


def journal_entries(state: str) -> list[str]:
    """The directories of the operations that are under way, or were left by a crash."""
    with suppress(OSError), os.scandir(f"{state}/operations") as entries:
        return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))[:_ENTRIES_MAX]
    return []
