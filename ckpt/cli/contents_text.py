"""What image sets hold, as text for people: tables, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from ckpt.cli.memory_use import MemoryUse, SpaceUse, memory_use
from ckpt.cli.output import columns, on_one_line
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.contents import Descriptor, Holder, OpenFile, Pipe, Socket, Task, TaskThread, TreeContents
from ckpt.units import Nanoseconds, Pid, human_bytes

_HOLDERS_MAX: Final = 3


def tree_text(contents: Iterable[TreeContents]) -> str:
    """The processes as a tree, each with its threads."""
    return "\n".join(line for tree in contents for line in _tree(tree))


def maps_text(contents: Iterable[TreeContents]) -> str:
    """The mappings of each process, shared memory, and the sums by kind."""
    parts: list[str] = []
    names = _names(contents := tuple(contents))
    for _, use in memory_use(contents):
        parts += [_space(space, use, names) for space in use.spaces if space.space.pids]
        shared = [
            (space.space.name, human_bytes(space.size_bytes), human_bytes(space.stored_bytes))
            for space in use.spaces
            if not space.space.pids
        ]
        if shared:
            parts.append("Shared memory\n" + columns(("NAME", "SIZE", "STORED"), shared))
    return "\n\n".join(parts)


def files_text(contents: Iterable[TreeContents]) -> str:
    """The descriptors of each process."""
    parts: list[str] = []
    for tree in contents:
        ends = {socket.number: ends_of(socket) for socket in tree.sockets if socket.number}
        rows: dict[Pid, list[tuple[str, ...]]] = {}
        for each in tree.descriptors:
            rows.setdefault(each.pid, []).append(_descriptor_row(each, ends))
        header = ("FD", "KIND", "ACCESS", "POSITION", "SIZE", "FILE", "MORE")
        parts += [
            f"{task.pid}  {on_one_line(task.name)}\n{columns(header, rows[task.pid])}"
            for task in tree.tasks
            if task.pid in rows
        ]
    return "\n\n".join(parts)


def sockets_text(contents: Iterable[TreeContents]) -> str:
    """The sockets, and the pipes."""
    trees = tuple(contents)
    sockets = [_socket_row(each) for tree in trees for each in tree.sockets]
    pipes = [_pipe_row(each) for tree in trees for each in tree.pipes]
    header = ("SOCKET", "STATE", "LOCAL", "REMOTE", "RECEIVED", "TO SEND", "HELD BY")
    parts = [columns(header, sockets)] if sockets else []
    parts += [columns(("PIPE", "PATH", "UNREAD", "CAPACITY", "HELD BY"), pipes)] if pipes else []
    return "\n\n".join(parts)


def clocks_text(checkpoint: Checkpoint) -> str:
    """What the time namespaces add to the clocks, and in what the threads waited."""
    lines = [
        f"tree {tree.root}: its time namespace adds {span(tree.time_offsets.monotonic_ns)} to monotonic, "
        f"{span(tree.time_offsets.boottime_ns)} to boottime"
        for tree in checkpoint.workload.trees
        if tree.time_offsets.monotonic_ns or tree.time_offsets.boottime_ns
    ]
    lines += [
        f"pid {wait.pid} thread {wait.thread}  waits in {wait.call}"
        + (
            f" on {wait.clock}, {span(wait.left_ns)} left"
            if wait.left_ns is not None
            else ", until when is not known"
        )
        for wait in checkpoint.waits
    ]
    return "\n".join(lines)


def span(duration: Nanoseconds) -> str:
    """A duration, to the microsecond."""
    return (
        f"-{span(Nanoseconds(-duration))}" if duration < 0 else str(timedelta(microseconds=duration // 1000))
    )


def _tree(tree: TreeContents) -> Iterator[str]:
    children: dict[Pid, list[Task]] = {}
    known = {task.pid for task in tree.tasks}
    roots = [task for task in tree.tasks if task.parent not in known or task.parent == task.pid]
    for task in tree.tasks:
        if task not in roots:
            children.setdefault(task.parent, []).append(task)
    waiting = [(task, 0) for task in reversed(roots)]
    while waiting:
        task, depth = waiting.pop()
        yield "  " * depth + _task_line(task)
        yield from ("  " * depth + f"    {_thread_line(thread)}" for thread in task.threads[1:])
        waiting += [(child, depth + 1) for child in reversed(children.get(task.pid, []))]


def _task_line(task: Task) -> str:
    inside = f" ({task.pid_inside} inside)" if task.pid_inside != task.pid else ""
    said = [
        f"{task.pid}{inside} {task.state.value} uid {task.uid}  {on_one_line(task.executable or task.name)}"
    ]
    if task.cwd:
        said.append(f"in {on_one_line(task.cwd)}")
    if task.root not in {"", "/"}:
        said.append(f"root {on_one_line(task.root)}")
    if task.threads and (scheduling := _scheduling(task.threads[0])):
        said.append(scheduling)
    if task.pending_signals:
        said.append(f"signals pending: {', '.join(map(str, task.pending_signals))}")
    own = [namespace.kind for namespace in task.namespaces if namespace.own]
    if own:
        said.append(f"own namespaces: {', '.join(own)}")
    return ", ".join(said)


def _thread_line(thread: TaskThread) -> str:
    said = [f"thread {thread.tid_inside} {on_one_line(thread.name)}", _scheduling(thread)]
    if thread.pending_signals:
        said.append(f"signals pending: {', '.join(map(str, thread.pending_signals))}")
    return ", ".join(filter(None, said))


def _scheduling(thread: TaskThread) -> str:
    """What is not as it is for most."""
    policy = thread.policy if thread.policy != "SCHED_OTHER" else ""
    priority = f"priority {thread.priority}" if thread.priority else ""
    return " ".join(filter(None, (policy, priority, f"nice {thread.nice}" if thread.nice else "")))


def _space(space: SpaceUse, use: MemoryUse, names: dict[Pid, str]) -> str:
    areas = [
        (
            f"{each.area.start:x}-{each.area.end:x}",
            each.area.permissions,
            human_bytes(each.area.size_bytes),
            human_bytes(each.stored_bytes) if each.stored_bytes else "-",
            each.area.kind.value,
            each.area.path or each.area.shared_space,
        )
        for each in space.areas
    ]
    kinds = ", ".join(
        f"{human_bytes(each.stored_bytes)} {each.kind.value}"
        for each in use.kinds_of(space)
        if each.stored_bytes
    )
    pids = ", ".join(map(str, space.space.pids))
    title = f"{pids}  {on_one_line(names.get(space.space.pids[0], ''))}"
    table = columns(("ADDRESSES", "PERM", "SIZE", "STORED", "KIND", "PATH"), areas)
    return f"{title}\n{table}\nstored: {kinds or 'nothing'}; mapped: {human_bytes(space.size_bytes)}"


def _names(contents: Iterable[TreeContents]) -> dict[Pid, str]:
    return {task.pid: task.name for tree in contents for task in tree.tasks}


def _descriptor_row(each: Descriptor, ends: Mapping[int, str]) -> tuple[str, ...]:
    file = each.file
    more = [*file.flags, *(["close-on-exec"] if each.close_on_exec else [])]
    return (
        str(each.fd),
        file.kind.value,
        file.access or "-",
        "" if file.position is None else str(file.position),
        "" if file.size_bytes is None else human_bytes(file.size_bytes),
        _file(file, ends),
        " ".join(more),
    )


def _file(file: OpenFile, ends: Mapping[int, str]) -> str:
    named = file.path or (f"[{file.object}]" if file.object else "")
    deleted = "(deleted)" if file.deleted else ""
    return " ".join(filter(None, (named, ends.get(file.object, ""), deleted, file.detail)))


def ends_of(socket: Socket) -> str:
    """From where to where, as far as that is known."""
    return " → ".join(filter(None, (socket.local, _remote(socket))))


def _remote(socket: Socket) -> str:
    return socket.remote or (f"[{socket.peer}]" if socket.peer else "")


def kind_of(socket: Socket) -> str:
    """What it is, and its number."""
    kind = f"{socket.family} {socket.protocol or socket.type}"
    return f"{kind} [{socket.number}]" if socket.number else kind


def _socket_row(socket: Socket) -> tuple[str, ...]:
    return (
        kind_of(socket),
        socket.state + (" (outside)" if socket.outside else ""),
        socket.local,
        _remote(socket),
        human_bytes(socket.receive_bytes) if socket.receive_bytes else "",
        human_bytes(socket.send_bytes) if socket.send_bytes else "",
        holders_of(socket.holders),
    )


def _pipe_row(pipe: Pipe) -> tuple[str, ...]:
    return (
        f"[{pipe.number}]",
        pipe.path,
        human_bytes(pipe.queued_bytes),
        "" if pipe.capacity_bytes is None else human_bytes(pipe.capacity_bytes),
        holders_of(pipe.holders),
    )


def holders_of(holders: tuple[Holder, ...]) -> str:
    """The first of those who have it."""
    named = [f"{each.pid} fd {each.fd} {each.access}".rstrip() for each in holders[:_HOLDERS_MAX]]
    more = len(holders) - _HOLDERS_MAX
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
