"""Rules over sockets that belong elsewhere as well: to another tree, to whoever started the workload, to another network.

Rule: of the host's processes only the workload's ancestors and their other children are looked at: a descriptor is
handed down, and to search all would cost too much.
Source: fork(2), systemd.socket(5); criu/sk-inet.c, open_inet_sk(); socket(7), SO_REUSEADDR, SO_REUSEPORT.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.host.diag_messages import InetSocket, State
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import (
    HeldSocket,
    held_sockets,
    inet_sockets,
    is_told,
    opened,
    unix_sockets,
)
from ckpt.host.preflight.outsiders import shared_with_kin, trees_with, who
from ckpt.host.preflight.rule import Found, Rule
from ckpt.host.socket_options import namespace_of
from ckpt.model.findings import Severity


def _with_outside(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        others = shared_with_kin(facts, held.hold.target) if _has_port(held, told) else ()
        if others:
            is_free = _may_be_bound_twice(held, told)
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a {held.protocol} socket at {told.shown_local} that {who(others)} has too: "
                + ("after a restore they are two" if is_free else "a restore fails as long as it has it"),
                severity=Severity.WARNING if is_free else None,
                remedy="" if is_free else None,
            )


def _unix_with_outside(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        others = shared_with_kin(facts, held.hold.target) if told.name and not told.peer else ()
        if others:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a unix socket at {told.shown_name} that {who(others)} has too: after a restore "
                "they are two, and its clients reach the restored one",
            )


def _between_trees(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        if _has_port(held, told) and len(trees_with(facts, held.hold.target)) > 1:
            # CRIU lets sockets of TCP be bound twice while it restores them (inet_port.reuseaddr).
            fails = held.protocol.startswith("UDP") and not _may_be_bound_twice(held, told)
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a {held.protocol} socket at {told.shown_local} that several trees of the "
                "workload have: "
                + ("the second cannot be restored" if fails else "each is restored with one of its own"),
                severity=Severity.BLOCKER if fails else Severity.WARNING,
            )


def _elsewhere(facts: Facts) -> Iterator[Found]:
    for held in held_sockets(facts):
        # What the kernel tells of in the holder's namespace is not in another one.
        if is_told(facts, held):
            continue
        with suppress(OSError), opened(held) as shared:
            namespace = namespace_of(shared)
            if namespace != held.task.namespaces["net"]:
                fails = held.protocol.startswith(("UNIX", "PACKET")) or _is_connected(shared)
                yield Found(
                    pid=held.task.pid,
                    subject=held.subject,
                    message=f"{held.named}, a {held.protocol} socket of another network namespace "
                    f"(net:[{namespace}]) than its holder's"
                    + ("" if fails else ": it is restored in its holder's"),
                    severity=Severity.BLOCKER if fails else Severity.WARNING,
                )


def _is_connected(of: socket.socket) -> bool:
    """Whether it is a TCP socket that is more than made: the first byte of its TCP_INFO is its state."""
    return of.proto == socket.IPPROTO_TCP and of.getsockopt(of.proto, socket.TCP_INFO, 1)[0] != State.CLOSE


def _has_port(held: HeldSocket, told: InetSocket) -> bool:
    return bool(told.local_port) and not held.protocol.startswith("RAW")


def _may_be_bound_twice(held: HeldSocket, told: InetSocket) -> bool:
    with suppress(OSError), opened(held) as shared:
        if shared.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            return told.state in (State.LISTEN, State.CLOSE)
        if shared.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR):
            return told.state == State.CLOSE
    return False


RULES: Final = (
    Rule(
        name="socket-namespace",
        severity=Severity.BLOCKER,
        title="a socket of another network namespace than that of its holder",
        effect='The dump fails for unix sockets ("Unix socket not found") and for TCP that listens or is connected; '
        "other sockets are restored in the holder's network.",
        remedy="Let the program close it, or run it in that namespace.",
        source="network_namespaces(7); criu/sk-unix.c, criu/sk-inet.c, gen_uncon_sk()",
        find=_elsewhere,
    ),
    Rule(
        name="socket-shared-outside",
        severity=Severity.BLOCKER,
        title="a TCP or UDP socket that a process outside has inherited or handed down, as systemd's of a service",
        effect='The dump works. The restore fails as long as that process has it ("Can\'t bind inet socket").',
        remedy="Let that process close it, or end it first (for systemd: stop the .socket unit).",
        source="systemd.socket(5); criu/sk-inet.c",
        find=_with_outside,
    ),
    Rule(
        name="unix-shared-outside",
        severity=Severity.WARNING,
        title="a listening unix socket that a process outside has as well",
        effect="The restored one is bound to the path anew; that of the other process gets no more clients.",
        remedy="End that process, or let it close the socket.",
        source="systemd.socket(5); criu/sk-unix.c",
        find=_unix_with_outside,
    ),
    Rule(
        name="socket-between-trees",
        severity=Severity.BLOCKER,
        title="a TCP or UDP socket that several trees of the workload share",
        effect="Each tree is restored with a socket of its own: of UDP the second fails, of TCP each connection goes to "
        "one of them.",
        remedy="Start both from one parent inside the cgroup, so that they are one tree.",
        source="criu/sk-inet.c",
        find=_between_trees,
    ),
)
