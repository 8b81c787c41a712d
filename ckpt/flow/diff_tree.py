"""What changed in one process tree: tasks, descriptors, sockets, pipes, resource limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt.flow.diff_items import field_changes, item_changes
from ckpt.flow.matching import both, pair_by, pair_pipes, pair_sockets, pair_tasks
from ckpt.model.changes import FieldChange, ItemChange
from ckpt.model.contents import Descriptor, Pipe, Socket, Task, TreeContents
from ckpt.units import Pid

_TASK: Final = (
    "name",
    "state",
    "uid",
    "gid",
    "executable",
    "cwd",
    "root",
    "umask",
    "oom_score_adj",
    "pending_signals",
)
_FILE: Final = ("kind", "access", "flags", "path", "position", "size_bytes", "deleted", "detail")
_SOCKET: Final = ("state", "local", "remote", "outside", "receive_bytes", "send_bytes")
_PIPE: Final = ("queued_bytes", "capacity_bytes")
_LIMIT: Final = ("soft", "hard")


class TreeChanges:
    """One tree before and after."""

    def __init__(self, before: TreeContents | None, after: TreeContents | None) -> None:
        self.before = before
        self.after = after
        self.tasks = pair_tasks(before, after)
        self.pids: dict[Pid, Pid] = {was.pid: now.pid for was, now in self.tasks if was and now}
        self.sockets = pair_sockets(before, after, self.pids)
        self.pipes = pair_pipes(before, after, self.pids)

    def task_changes(self) -> Iterator[ItemChange]:
        """Tasks."""
        return item_changes(
            self.tasks,
            lambda task: task.name or task.executable,
            _TASK,
            pid=lambda task: task.pid,
            more=_thread_changes,
        )

    def descriptor_changes(self) -> Iterator[ItemChange]:
        """Descriptors; what the pipe or socket behind one is called is none of its properties."""
        objects = {
            (kind, was.number): now.number
            for kind, pairs in (("s", self.sockets), ("p", self.pipes))
            for was, now in pairs
            if was and now
        }
        pairs = pair_by(
            self.before.descriptors if self.before else (),
            self.after.descriptors if self.after else (),
            (
                lambda each: (self.pids.get(each.pid, each.pid), each.fd),
                lambda each: (each.pid, each.fd),
            ),
        )

        def more(was: Descriptor, now: Descriptor) -> Iterator[FieldChange]:
            yield from field_changes(was.file, now.file, _FILE)
            if was.file.kind is now.file.kind and was.file.object:
                kind = "p" if was.file.kind.value in {"pipe", "fifo"} else "s"
                if objects.get((kind, was.file.object)) != now.file.object:
                    yield FieldChange(name="object", before=was.file.object, after=now.file.object)

        return item_changes(
            pairs,
            lambda each: f"fd {each.fd} {each.file.path or each.file.kind}",
            ("close_on_exec",),
            pid=lambda each: each.pid,
            more=more,
        )

    def socket_changes(self) -> Iterator[ItemChange]:
        """Sockets."""
        return item_changes(self.sockets, _socket_subject, _SOCKET, pid=_first_holder)

    def pipe_changes(self) -> Iterator[ItemChange]:
        """Pipes."""
        return item_changes(
            self.pipes, lambda pipe: pipe.path or f"pipe {pipe.number}", _PIPE, pid=_first_holder
        )

    def limit_changes(self) -> Iterator[ItemChange]:
        """Resource limits of tasks that are in both."""
        for was, now in self.tasks:
            if was and now:
                pairs = pair_by(was.limits, now.limits, both(lambda limit: limit.name))
                for item in item_changes(pairs, lambda limit: limit.name, _LIMIT):
                    yield ItemChange(
                        change=item.change, pid=now.pid, subject=item.subject, fields=item.fields
                    )


def _thread_changes(was: Task, now: Task) -> Iterator[FieldChange]:
    if len(was.threads) != len(now.threads):
        yield FieldChange(name="threads", before=len(was.threads), after=len(now.threads))
    ours = {thread.tid_inside: thread for thread in was.threads}
    for thread in now.threads:
        if earlier := ours.get(thread.tid_inside):
            for field in field_changes(earlier, thread, ("name", "policy", "priority", "nice")):
                yield FieldChange(
                    name=f"thread {thread.tid_inside} {field.name}", before=field.before, after=field.after
                )


def _socket_subject(socket: Socket) -> str:
    what = socket.protocol if socket.family.value.startswith("inet") else f"{socket.family} {socket.type}"
    ends = " → ".join(end for end in (socket.local, socket.remote) if end)
    return f"{what} {ends}".rstrip() if ends else f"{what} {socket.number}"


def _first_holder(item: Socket | Pipe) -> Pid | None:
    return item.holders[0].pid if item.holders else None
