"""Rules over sockets of TCP and UDP, and over those of protocols that CRIU does not know.

Source: criu/sockets.c, dump_socket(); criu/sk-inet.c, can_dump_ipproto() and can_dump_inet_sk(); criu/sk-tcp.c; tcp(7),
udp(7).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final

from ckpt.host.diag_messages import InetSocket, State
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import (
    HeldSocket,
    held_sockets,
    inet_sockets,
)
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.model.findings import Severity

_KNOWN: Final = frozenset(
    (
        "TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6",
        "PACKET", "NETLINK", "UNIX", "UNIX-STREAM",
    )
)  # fmt: skip
_NO_MPTCP: Final = "Let it open plain TCP (in Go, GODEBUG=multipathtcp=0)."
_REMEDIES: Final = {"MPTCP": _NO_MPTCP, "MPTCPv6": _NO_MPTCP}
_CLOSED: Final = frozenset((State.LISTEN, State.CLOSE, State.BOUND_INACTIVE))


def _unknown(facts: Facts) -> Iterator[Found]:
    for held in held_sockets(facts):
        # A socket whose protocol is not told has ended, or this kernel is older than the attribute.
        if held.protocol and held.protocol not in _KNOWN:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a socket of {held.protocol}, which CRIU cannot dump",
                remedy=_REMEDIES.get(held.protocol),
            )


def _connected(facts: Facts) -> Iterator[Found]:
    if facts.options.tcp_established or facts.options.tcp_close:
        return
    for held, told in _tcp(facts):
        if told.state not in _CLOSED:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, an open TCP connection ({told.shown_local} to {told.shown_remote})",
            )


def _kept_connection(facts: Facts) -> Iterator[Found]:
    if not facts.options.tcp_established:
        return
    own = {(told.local, told.local_port) for _, told in _tcp(facts)}
    for held, told in _tcp(facts):
        if told.state not in _CLOSED and (told.remote, told.remote_port) not in own:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a TCP connection to {told.shown_remote}, which is frozen with it: the other "
                "side must be there still when it comes back",
            )


def _backlog(facts: Facts) -> Iterator[Found]:
    for held, told in _tcp(facts):
        # Of a listening socket the receive queue counts them.
        if told.state == State.LISTEN and told.received:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, which listens at {told.shown_local} and has not accepted "
                f"{_count(told.received, 'connection')} yet",
            )


def _listening(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        bound = told.state == State.LISTEN if _is_tcp(held) else not told.remote_port
        if bound and told.local_port and not held.protocol.startswith("RAW"):
            protocol = "TCP" if _is_tcp(held) else "UDP"
            yield Found(
                pid=held.task.pid,
                subject=f"{protocol} {told.shown_local}",
                message=f"{held.task.label} has the {protocol} port {told.shown_local}, which must be free when it "
                "is restored",
            )


def _datagrams(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        if not _is_tcp(held) and not held.protocol.startswith("RAW") and told.received:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a {held.protocol} socket with {told.received} bytes that were not read: "
                "they are lost",
            )


def _tools(facts: Facts) -> Iterator[Found]:
    for tree in facts.snapshot.trees:
        if tree.owns("net") and shutil.which("ip") is None:
            yield Found(
                pid=tree.root,
                subject="ip",
                message=f"{facts.snapshot.processes[tree.root].label} has a network namespace of its own, and there is "
                "no program ip",
            )


def _tcp(facts: Facts) -> Iterator[tuple[HeldSocket, InetSocket]]:
    return ((held, told) for held, told in inet_sockets(facts) if _is_tcp(held))


def _is_tcp(held: HeldSocket) -> bool:
    return held.protocol.startswith("TCP")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


RULES: Final = (
    Rule(
        name="socket-protocol",
        severity=Severity.BLOCKER,
        title="a socket of a protocol that CRIU does not know: MPTCP, SCTP, AF_VSOCK, AF_ALG, AF_XDP, Bluetooth, CAN …",
        effect='The dump fails ("Unsupported proto", "Unknown socket collected"), the workload runs on.',
        remedy="Let the program close the socket, or run it without it.",
        source="net/socket.c (system.sockprotoname); criu/sockets.c, criu/sk-inet.c. Provoked with MPTCP, AF_VSOCK and "
        "AF_XDP; the others are from CRIU's list of those that it knows",
        find=_unknown,
    ),
    Rule(
        name="tcp-established",
        severity=Severity.BLOCKER,
        title="an open TCP connection, and no --tcp-established",
        effect='The dump fails ("Connected TCP socket"), the workload runs on.',
        remedy="Give --tcp-established, which freezes the connection with it, or --tcp-close, which brings it back closed, "
        "or let it be closed first.",
        source="criu/sk-inet.c, can_dump_inet_sk()",
        find=_connected,
        option="--tcp-established",
        when=When.ALWAYS,
    ),
    Rule(
        name="tcp-peer",
        severity=Severity.INFO,
        title="an open TCP connection to somebody else, and --tcp-established",
        effect="The connection comes back as it was. The other side must still have it: if it gave up meanwhile, the "
        "program sees a reset.",
        remedy="Restore it soon, where its address is the same.",
        source="criu/sk-tcp.c; tcp(7)",
        find=_kept_connection,
    ),
    Rule(
        name="tcp-backlog",
        severity=Severity.BLOCKER,
        title="TCP connections that wait to be accepted",
        effect='The dump would fail ("In-flight connection"). ckpt lets the workload go on for a moment and tries '
        "again.",
        remedy="It passes by itself once the program accepts them; ckpt tries again.",
        source="criu/sk-inet.c, can_dump_inet_sk()",
        find=_backlog,
        when=When.MOMENT,
    ),
    Rule(
        name="port",
        severity=Severity.INFO,
        title="a port that must be free at the restore",
        effect='While somebody else has it the restore fails ("Can\'t bind inet socket").',
        remedy="Stop who has it before the restore.",
        source="criu/sk-inet.c",
        find=_listening,
    ),
    Rule(
        name="udp-unread",
        severity=Severity.WARNING,
        title="UDP datagrams that were not read",
        effect="CRIU drops them, as a network may.",
        remedy="Let the program read them first if they matter.",
        source="criu/sk-inet.c, can_dump_inet_sk()",
        find=_datagrams,
    ),
    Rule(
        name="network-tools",
        severity=Severity.BLOCKER,
        title="a network namespace of its own, and no program ip",
        effect='The dump fails ("IP tool failed"), the workload runs on.',
        remedy="Install iproute2, and have its folder in PATH.",
        source="network_namespaces(7); criu/net.c",
        find=_tools,
    ),
)
