"""A checkpoint as text for people: one section a subject, empty ones left out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from ckpt.cli.contents_summary import descriptors_summary, memory_summary, sockets_summary
from ckpt.cli.contents_text import clocks_text, span
from ckpt.cli.documents import rfc3339
from ckpt.cli.output import columns, on_one_line
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.contents import TreeContents
from ckpt.model.inodes import InodeRecord, Role, RoleKind
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.workload import Process, Tree
from ckpt.units import Pid, human_bytes, milliseconds

ROLES_MAX: Final = 3
"""How many holders of a file one line names."""


def portrait(stored: StoredCheckpoint, contents: tuple[TreeContents, ...] = ()) -> str:
    """The whole checkpoint, with a few lines on what its image sets hold."""
    checkpoint = stored.checkpoint
    return _sections(
        ("", _summary(stored)),
        ("Processes", _processes(checkpoint.workload.trees)),
        ("Memory", memory_summary(contents)),
        ("Descriptors", descriptors_summary(contents)),
        ("Sockets and pipes", sockets_summary(contents)),
        ("Clocks at the freeze", _clocks(checkpoint)),
        ("Timers", _timers(checkpoint)),
        ("Cgroups", _cgroups(checkpoint)),
        ("Files", _files(checkpoint.inodes)),
        ("Pipes and terminals shared with the outside", _outside(checkpoint)),
        ("Files carried along", _carried(checkpoint)),
        ("Files saved with the memory", _saved(checkpoint)),
        ("Volumes", _volumes(checkpoint)),
        ("Image sets", _image_sets(checkpoint)),
    )


def clocks_portrait(checkpoint: Checkpoint) -> str:
    """All that has to do with time."""
    return _sections(
        ("Clocks at the freeze", _clocks(checkpoint)),
        ("Timers", _timers(checkpoint)),
        ("Offsets and waits", clocks_text(checkpoint)),
    )


def files_portrait(checkpoint: Checkpoint) -> str:
    """The files that were held, with their identity."""
    return _sections(("Files", _files(checkpoint.inodes)))


def _sections(*sections: tuple[str, str]) -> str:
    return "\n\n".join(f"{title}\n{_indented(body)}" if title else body for title, body in sections if body)


def _summary(stored: StoredCheckpoint) -> str:
    checkpoint = stored.checkpoint
    host = checkpoint.host
    rows = (
        ("checkpoint", stored.id),
        ("job", checkpoint.job or "-"),
        ("message", checkpoint.message),
        ("tags", ", ".join(stored.tags)),
        ("created", rfc3339(checkpoint.created_ns)),
        ("parent", checkpoint.parent or "-"),
        (
            "frozen",
            f"{milliseconds(checkpoint.frozen_ns):.1f} ms, CRIU at work for {milliseconds(checkpoint.dump_ns):.1f} ms",
        ),
        ("size", f"{human_bytes(checkpoint.image_bytes)}, stored in {human_bytes(stored.stored_bytes)}"),
        ("host", f"{host.hostname}: {host.distribution}, Linux {host.kernel}, {host.architecture}"),
        ("", f"{host.cpu_model}; {host.libc}; CRIU {host.criu_version}; ckpt {host.ckpt_version}"),
    )
    return _pairs((name, value) for name, value in rows if value)


def _processes(trees: Iterable[Tree]) -> str:
    return "\n".join(line for tree in trees for line in _tree_lines(tree))


def _tree_lines(tree: Tree) -> list[str]:
    """The processes as `ps --forest` would draw them."""
    children: dict[Pid, list[Process]] = {}
    for process in tree.processes:
        if process.pid != tree.root:
            children.setdefault(process.parent, []).append(process)
    lines: list[str] = []
    # Not by recursion: a chain of processes may be longer than Python's stack.
    waiting = [(process, 0) for process in tree.processes if process.pid == tree.root]
    while waiting:
        process, depth = waiting.pop()
        lines.append("  " * depth + _process_line(process))
        waiting += [(child, depth + 1) for child in reversed(children.get(process.pid, []))]
    own = [namespace.kind for namespace in tree.namespaces if namespace.own]
    if own:
        lines.append(f"  (namespaces of its own: {', '.join(own)})")
    return lines


def _process_line(process: Process) -> str:
    command = on_one_line(" ".join(process.command_line) or f"[{process.name}]")
    inside = f" ({process.pid_inside} inside)" if process.pid_inside != process.pid else ""
    threads = f", {len(process.threads)} threads" if len(process.threads) > 1 else ""
    return f"{process.pid}{inside} {process.state} uid {process.uid}{threads}  {command}"


def _clocks(checkpoint: Checkpoint) -> str:
    clocks = checkpoint.clocks
    return _pairs(
        (
            (
                "realtime",
                f"{rfc3339(clocks.realtime_ns)}{f' ({clocks.time_zone})' if clocks.time_zone else ''}",
            ),
            ("monotonic", span(clocks.monotonic_ns)),
            ("boottime", span(clocks.boottime_ns)),
            ("boot", f"{clocks.boot_id}, clocksource {clocks.clocksource}"),
        )
    )


def _timers(checkpoint: Checkpoint) -> str:
    return "\n".join(
        f"pid {timer.pid}  {timer.kind.value} on {timer.clock}: fires in {span(timer.value_ns)}"
        + (f", then every {span(timer.interval_ns)}" if timer.interval_ns else "")
        for timer in checkpoint.timers
    )


def _cgroups(checkpoint: Checkpoint) -> str:
    lines: list[str] = []
    for record in checkpoint.workload.cgroups:
        lines.append(f"{record.hierarchy}:{record.path}  {len(record.members)} process(es)")
        lines += [
            f"  {setting.name} = {' | '.join(setting.value.splitlines())}" for setting in record.settings
        ]
    return "\n".join(lines)


def _files(inodes: Iterable[InodeRecord]) -> str:
    rows = [
        (
            inode.path + (" (deleted)" if inode.deleted else ""),
            inode.kind.value,
            human_bytes(inode.size_bytes),
            _inode(inode),
            inode.digest[:12] if inode.digest else inode.digest_state.value,
            _holders(inode.roles),
        )
        for inode in inodes
        if any(role.kind is not RoleKind.ABOVE for role in inode.roles)
    ]
    return columns(("PATH", "KIND", "SIZE", "INODE", "CONTENT", "HELD BY"), rows) if rows else ""


def _inode(inode: InodeRecord) -> str:
    """The file system and the number; a number that the workload saw instead is told."""
    real = f"{inode.filesystem.type}:{inode.inode}".removeprefix(":")
    return real if inode.seen is None else f"{real} seen as {inode.seen.inode}"


def _holders(roles: tuple[Role, ...]) -> str:
    named = [
        f"{role.pid} {role.kind.value}" + (f" {role.detail}" if role.detail.isdecimal() else "")
        for role in roles[:ROLES_MAX]
    ]
    more = len(roles) - ROLES_MAX
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _outside(checkpoint: Checkpoint) -> str:
    return "\n".join(
        f"{file.key}  pid {file.pid} fd {file.fd}, {'written' if file.writes else 'read'} by the workload"
        for file in checkpoint.workload.outside_files
    )


def _carried(checkpoint: Checkpoint) -> str:
    return "\n".join(
        f"{on_one_line(carried.path)}  {human_bytes(carried.content.size_bytes)}"
        for carried in checkpoint.carried_files
    )


def _volumes(checkpoint: Checkpoint) -> str:
    return "\n".join(
        f"{on_one_line(volume.mountpoint)}  {volume.filesystem}, {human_bytes(volume.content.size_bytes)}, "
        f"device {os.major(volume.device)}:{os.minor(volume.device)}"
        for volume in checkpoint.volumes
    )


def _saved(checkpoint: Checkpoint) -> str:
    lines = [f"{on_one_line(directory)}/  as a whole" for directory in checkpoint.saved_directories]
    lines += [
        f"{on_one_line(saved.path)}  {human_bytes(saved.content.size_bytes)}"
        for saved in checkpoint.saved_files
    ]
    return "\n".join(lines)


def _image_sets(checkpoint: Checkpoint) -> str:
    lines: list[str] = []
    for images in checkpoint.image_sets:
        largest = sorted(images.files, key=lambda file: file.size_bytes, reverse=True)[:3]
        named = ", ".join(f"{file.name} {human_bytes(file.size_bytes)}" for file in largest)
        lines.append(
            f"tree {images.root}: {len(images.files)} files, {human_bytes(images.image_bytes)} ({named} …)"
        )
        if images.statistics is not None:
            lines.append(
                f"  CRIU: {images.statistics.pages_written} pages written of "
                f"{images.statistics.pages_scanned} scanned, memory dumped in "
                f"{milliseconds(images.statistics.memory_dump_ns):.1f} ms"
            )
    return "\n".join(lines)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<11} {on_one_line(value)}" for name, value in rows)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
