"""What image sets hold, in a few lines of text: for the portrait of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from ckpt.cli.contents_text import ends_of, holders_of, kind_of
from ckpt.cli.memory_use import memory_use
from ckpt.cli.output import columns, on_one_line
from ckpt.model.contents import Socket, TreeContents
from ckpt.units import human_bytes

_ROWS_MAX: Final = 10


def memory_summary(contents: Iterable[TreeContents]) -> str:
    """The sums by kind over all processes of a tree."""
    parts = []
    for _, use in memory_use(contents):
        rows = [
            (each.kind.value, str(each.areas), human_bytes(each.size_bytes), human_bytes(each.stored_bytes))
            for each in use.kinds_of()
        ]
        parts.append(columns(("KIND", "AREAS", "SIZE", "STORED"), rows))
    return "\n".join(parts)


def descriptors_summary(contents: Iterable[TreeContents]) -> str:
    """How many descriptors of which kinds there are."""
    kinds = Counter(each.file.kind.value for tree in contents for each in tree.descriptors)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def sockets_summary(contents: Iterable[TreeContents]) -> str:
    """The first sockets, a line each, and the pipes with something in them."""
    trees = tuple(contents)
    sockets = [_socket_line(each) for tree in trees for each in tree.sockets]
    pipes = [
        f"pipe {each.path or each.number} holds {human_bytes(each.queued_bytes)}  {holders_of(each.holders)}"
        for tree in trees
        for each in tree.pipes
        if each.queued_bytes
    ]
    lines = [on_one_line(line) for line in (*sockets, *pipes)]
    more = len(lines) - _ROWS_MAX
    return "\n".join(lines[:_ROWS_MAX] + ([f"and {more} more"] if more > 0 else []))


def _socket_line(socket: Socket) -> str:
    queues = ((socket.receive_bytes, "not read"), (socket.send_bytes, "not sent"))
    said = [
        kind_of(socket),
        socket.state,
        ends_of(socket),
        "of a process outside" if socket.outside else "",
        *(f"({human_bytes(count)} {what})" for count, what in queues if count),
    ]
    return f"{' '.join(filter(None, said))}  {holders_of(socket.holders)}".rstrip()
