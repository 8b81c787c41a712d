"""The tasks of an image set, and their threads.

Source: images/core.proto, images/creds.proto, images/fs.proto, images/mm.proto, images/rlimit.proto;
compel/include/uapi/task-state.h; include/uapi/asm-generic/resource.h; criu/image.c (`root_ids` are CRIU's own).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entries, read_entry
from ckpt.host.criu.pstree import ImageTask, task_ids
from ckpt.host.criu.reading.open_files import OpenFiles
from ckpt.host.criu.reading.values import name_of, pending_signals, text
from ckpt.model.contents import ResourceLimit, Task, TaskNamespace, TaskState, TaskThread
from ckpt.units import Pid

_STATES: Final = {
    1: TaskState.ALIVE,
    # A dead task that nobody has asked after is a zombie.
    2: TaskState.ZOMBIE,
    3: TaskState.STOPPED,
    6: TaskState.ZOMBIE,
}
_POLICIES: Final = {
    0: "SCHED_OTHER",
    1: "SCHED_FIFO",
    2: "SCHED_RR",
    3: "SCHED_BATCH",
    5: "SCHED_IDLE",
    6: "SCHED_DEADLINE",
    7: "SCHED_EXT",
}
_LIMITS: Final = (
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
)
_INFINITY: Final = (1 << 64) - 1
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def read_task(
    images: Path, task: ImageTask, files: OpenFiles, pids: Mapping[Pid, Pid], root_ids: Any
) -> Task:
    """One task with its threads.

    Args:
        images: The set.
        task: The task.
        files: The open files of the set.
        pids: From a number in the images to the host's.
        root_ids: What the inventory says of CRIU's own namespaces.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    core = _core(images, task.pid)
    cwd, root, umask = _places(images, task.pid, files)
    return Task(
        pid=pids.get(task.pid, task.pid),
        pid_inside=task.pid,
        parent=pids.get(task.parent, task.parent),
        group=task.group,
        session=task.session,
        name=text(core.tc.comm),
        state=_STATES.get(core.tc.task_state, TaskState.UNKNOWN),
        uid=core.thread_core.creds.uid,
        gid=core.thread_core.creds.gid,
        executable=_executable(images, task.pid, files),
        cwd=cwd,
        root=root,
        umask=umask,
        oom_score_adj=core.tc.oom_score_adj,
        threads=tuple(
            _thread(thread, core if thread == task.pid else _core(images, thread), core)
            for thread in task.threads
        ),
        pending_signals=tuple(pending_signals(core.tc.signals_s)),
        limits=tuple(
            ResourceLimit(name=name, soft=_limit(limit.cur), hard=_limit(limit.max))
            for name, limit in zip(_LIMITS, core.tc.rlimits.rlimits, strict=False)
        ),
        namespaces=_namespaces(images, task.pid, root_ids),
    )


def _core(images: Path, thread: Pid) -> Any:
    name = f"core-{thread}.img"
    entries = read_entries(images / name, "CORE", "core_entry")
    if not entries:
        raise ObjectCorrupt(kind="image file", name=name, reason="it has no entry")
    return entries[0]


def _thread(thread: Pid, core: Any, leader: Any) -> TaskThread:
    scheduling = core.thread_core
    return TaskThread(
        tid_inside=thread,
        name=text(scheduling.comm) or text(leader.tc.comm),
        policy=name_of(scheduling.sched_policy, _POLICIES, "policy"),
        priority=scheduling.sched_prio,
        nice=scheduling.sched_nice,
        pending_signals=tuple(pending_signals(scheduling.signals_p)),
    )


def _places(images: Path, pid: Pid, files: OpenFiles) -> tuple[str, str, int]:
    """The working directory, the root and the umask."""
    path = images / f"fs-{pid}.img"
    if not path.is_file():
        return "", "", 0
    entry = read_entry(path, "FS", "fs_entry")
    return files.path_of(entry.cwd_id), files.path_of(entry.root_id), entry.umask


def _executable(images: Path, pid: Pid, files: OpenFiles) -> str:
    path = images / f"mm-{pid}.img"
    return files.path_of(read_entry(path, "MM", "mm_entry").exe_file_id) if path.is_file() else ""


def _limit(value: int) -> int | None:
    return None if value == _INFINITY else value


def _namespaces(images: Path, pid: Pid, root_ids: Any) -> tuple[TaskNamespace, ...]:
    ids = task_ids(images, pid)
    found = (
        (kind, getattr(ids, f"{kind}_ns_id"), getattr(root_ids, f"{kind}_ns_id")) for kind in _NAMESPACES
    )
    return tuple(
        TaskNamespace(kind=kind, number=number, own=number != criu) for kind, number, criu in found if number
    )
