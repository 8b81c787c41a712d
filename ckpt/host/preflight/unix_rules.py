"""Rules over unix sockets: who is at the other end, and what is on its way.

CRIU dumps one tree at a time, so a peer in another tree of the workload is as far away as one outside.
Source: criu/sk-unix.c, dump_one_unix_fd() and __dump_external_socket(); unix(7); net/unix/diag.c.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from ckpt.host.diag_messages import State, UnixSocket
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import HeldSocket, diagnosed, unix_sockets
from ckpt.host.preflight.outsiders import holders, outside, tree_of, trees_with, who
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.model.findings import Severity
from ckpt.units import InodeNumber

_SERVICES: Final = (
    ("/dbus/system_bus_socket", "D-Bus", "Run it without D-Bus."),
    (
        "/run/user/",
        "the user's session (D-Bus, PulseAudio, Wayland …)",
        "Run it outside the desktop's session.",
    ),
    ("/systemd/journal/stdout", "the journal", "Redirect its output to a file."),
    (".X11-unix/", "the X server", "Run it without a display, or under a server of its own (Xvfb, Xpra)."),
    ("/docker.sock", "Docker", "Let it close the connection."),
)
"""Where well-known listeners are, what they are, and what to do: the first part that is in a name counts."""

_SYSLOG: Final = ("/dev/log", "/systemd/journal/")


def _stream_peer(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.type == socket.SOCK_DGRAM or not told.peer or _is_near(facts, held, told.peer):
            continue
        peer = diagnosed(facts, held).unix(told.peer)
        name = peer.shown_name if peer else ""
        service = next((found for found in _SERVICES if found[0] in name), None)
        yield Found(
            pid=held.task.pid,
            subject=held.subject,
            message=f"{held.named}, a unix connection to {_peer(facts, told.peer, name)}"
            + (f": {service[1]}" if service else ""),
            remedy=service[2] if service else None,
        )


def _unaccepted_outside(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        listener = _awaited(facts, held, told)
        if listener is not None and not _is_near(facts, held, listener.inode):
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a unix connection that "
                f"{_peer(facts, listener.inode, listener.shown_name)} has not accepted yet",
            )


def _datagram_peer(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.type != socket.SOCK_DGRAM or not told.peer or _is_near(facts, held, told.peer):
            continue
        peer = diagnosed(facts, held).unix(told.peer)
        name = peer.shown_name if peer else ""
        message = f"{held.named}, a unix datagram socket to {_peer(facts, told.peer, name)}"
        if any(part in name for part in _SYSLOG):
            message += ": the system's log"
        if not facts.options.external_unix:
            option, remedy = ("--external-unix", None) if name else ("", "Let it be closed first.")
            yield Found(
                pid=held.task.pid, subject=held.subject, message=message, option=option, remedy=remedy
            )
        elif not name:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{message}, which has no name by which it could be found again",
                option="",
                remedy="Let it be closed first.",
            )
        else:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{message}, which must be there when it is restored",
                severity=Severity.INFO,
                option="",
                remedy="",
            )


def _unreachable(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        peer = diagnosed(facts, held).unix(told.peer) if told.peer else None
        if (
            peer is not None
            and peer.peer != told.inode
            and not peer.name
            and _is_near(facts, held, peer.inode)
        ):
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a unix socket whose peer {peer.inode} has no name and another peer",
            )


def _on_its_way(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.state == State.LISTEN and 0 in told.pending:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, which listens at {told.shown_name} and has not accepted a connection that "
                "was closed already",
            )
        elif told.sent:
            listener = _awaited(facts, held, told)
            if listener is not None and _is_near(facts, held, listener.inode):
                yield Found(
                    pid=held.task.pid,
                    subject=held.subject,
                    message=f"{held.named}, a unix connection that {listener.shown_name} has not accepted yet, and "
                    "data was sent over it",
                )


def _client_outside(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        for client in told.pending:
            # Whose is nobody's was made, or closed, since the workload was read.
            if client and not _is_near(facts, held, client) and _is_held(facts, client):
                yield Found(
                    pid=held.task.pid,
                    subject=held.subject,
                    message=f"{held.named}, which listens at {told.shown_name} and has not accepted a connection of "
                    f"{_peer(facts, client, '')}",
                )


def _address(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.state == State.LISTEN and told.name:
            yield Found(
                pid=held.task.pid,
                subject=told.shown_name,
                message=f"{held.task.label} listens at the unix socket {told.shown_name}, which must not be "
                "another's when it is restored",
            )


def _awaited(facts: Facts, held: HeldSocket, told: UnixSocket) -> UnixSocket | None:
    """The listener that has not accepted this connection yet; None if it is no such connection."""
    if told.peer or told.state != State.ESTABLISHED or told.type == socket.SOCK_DGRAM or told.shut_both:
        return None
    return diagnosed(facts, held).listener_of(told.inode)


def _is_near(facts: Facts, held: HeldSocket, inode: InodeNumber) -> bool:
    """Whether a socket is held in the same tree as this one."""
    return tree_of(facts, held.task.pid) in trees_with(facts, f"socket:[{inode}]")


def _is_held(facts: Facts, inode: InodeNumber) -> bool:
    target = f"socket:[{inode}]"
    return bool(holders(facts, target) or outside(facts, target))


def _peer(facts: Facts, inode: InodeNumber, name: str) -> str:
    target = f"socket:[{inode}]"
    at = f" ({name})" if name else ""
    inside = sorted(holders(facts, target))
    if inside:
        return f"process {inside[0]}{at} in another tree of the workload"
    return (who(outside(facts, target)) or "a process outside") + at


RULES: Final = (
    Rule(
        name="unix-peer",
        severity=Severity.BLOCKER,
        title="a unix stream or seqpacket connection to a process outside the tree: D-Bus, the journal, X11 …",
        effect='The dump fails ("External socket is used", "half of stream unix connection"), the workload runs on.',
        remedy="Let it be closed first, or checkpoint both processes in one tree.",
        source="criu/sk-unix.c, __dump_external_socket()",
        find=_stream_peer,
        when=When.ALWAYS,
    ),
    Rule(
        name="unix-unaccepted-outside",
        severity=Severity.BLOCKER,
        title="a unix connection that a listener outside the tree has not accepted yet",
        effect='The dump works, and the restore fails ("Peer unresolved"): the workload would be lost.',
        remedy="It passes once the listener accepts it; else let it be closed first.",
        source="criu/sk-unix.c, dump_one_unix_fd() and unix_find_peer()",
        find=_unaccepted_outside,
        when=When.MOMENT,
    ),
    Rule(
        name="unix-datagram-peer",
        severity=Severity.BLOCKER,
        title="a unix datagram socket that is connected to a process outside the tree, as that of syslog",
        effect='Without --external-unix the dump fails ("External socket is used"). With it the socket is connected '
        "to the same path again, where somebody must be at the restore.",
        remedy="Give --external-unix, or let it be closed first.",
        source="criu/sk-unix.c, __dump_external_socket()",
        find=_datagram_peer,
        option="--external-unix",
        when=When.ALWAYS,
    ),
    Rule(
        name="unix-peer-unreachable",
        severity=Severity.BLOCKER,
        title="a unix socket whose peer has another peer and no name",
        effect='The dump fails ("unreachable peer"), the workload runs on.',
        remedy="Let it be closed first.",
        source="criu/sk-unix.c, dump_one_unix_fd()",
        find=_unreachable,
    ),
    Rule(
        name="unix-in-flight",
        severity=Severity.BLOCKER,
        title="a unix connection that was not accepted yet and has data in it, or was closed already",
        effect='The dump would fail ("in-flight socket"). ckpt lets the workload go on for a moment and tries again.',
        remedy="It passes by itself once the program accepts it; ckpt tries again.",
        source="criu/sk-unix.c, dump_one_unix_fd()",
        find=_on_its_way,
        when=When.MOMENT,
    ),
    Rule(
        name="unix-client-outside",
        severity=Severity.WARNING,
        title="a unix connection from outside that was not accepted yet",
        effect="It is not restored: the program does not learn of it.",
        remedy="It passes by itself once the program accepts it.",
        source="criu/sk-unix.c",
        find=_client_outside,
    ),
    Rule(
        name="unix-address",
        severity=Severity.INFO,
        title="a unix socket that listens at a path or an abstract name",
        effect='If another file or socket has it at the restore, that fails ("Can\'t bind").',
        remedy="Stop who has it, or remove the file, before the restore.",
        source="criu/sk-unix.c, bind_unix_sk()",
        find=_address,
    ),
)
