"""Rules over what only a socket itself knows: its options, and who else has it.

CRIU restores the options that criu/sockets.c, sk-inet.c and sk-tcp.c name, and no others: each of those below was
seen to be lost (tests/system/test_rules_sockets.py). What is set is what differs from a new socket of the same kind.
Source: socket(7), ip(7), ipv6(7), tcp(7), udp(7), netlink(7), packet(7).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import HeldSocket, held_sockets, inet_sockets, opened, unix_sockets
from ckpt.host.preflight.lost_options import LOST
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.host.socket_options import Flown, Group, Option, descriptors_in_flight, groups_of, has_joined
from ckpt.model.findings import Severity

_SOCKET, _UDP = 1, 17

_CORK: Final = Option(_UDP, 1, "UDP_CORK")
_ADDS_CONTROL: Final = (
    Option(_SOCKET, 16, "SO_PASSCRED"),
    Option(_SOCKET, 29, "SO_TIMESTAMP"),
    Option(_SOCKET, 34, "SO_PASSSEC"),
    Option(_SOCKET, 35, "SO_TIMESTAMPNS"),
    Option(_SOCKET, 76, "SO_PASSPIDFD"),
)

_DUMPABLE: Final = ("eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd")
_TERMINALS: Final = (4, 5, 204, *range(136, 144))

Kind = tuple[int, int, int]
Defaults = tuple[tuple[Option, int | bytes], ...]


def _lost(facts: Facts) -> Iterator[Found]:
    fresh: dict[tuple[str, Kind], Defaults] = {}
    for held in held_sockets(facts):
        # It was closed meanwhile.
        with suppress(OSError):
            names = _changed(held, fresh) if held.protocol in LOST else ()
            if names:
                yield Found(
                    pid=held.task.pid,
                    subject=held.subject,
                    message=f"{held.named}, whose {_listed(names)} will be back at the default",
                )


def _changed(held: HeldSocket, fresh: dict[tuple[str, Kind], Defaults]) -> Sequence[str]:
    with opened(held) as shared:
        key = (held.protocol, (shared.family, shared.type, shared.proto))
        if key not in fresh:
            with socket.socket(*key[1]) as new:
                values = [(option, option.value(new)) for option in LOST[held.protocol]]
            # What a new socket does not have, this kernel does not have.
            fresh[key] = tuple((option, value) for option, value in values if value is not None)
        return [option.name for option, default in fresh[key] if option.value(shared) != default]


def _multicast(facts: Facts) -> Iterator[Found]:
    groups: dict[int, tuple[Group, ...]] = {}
    for held in held_sockets(facts):
        if not held.protocol.startswith(("UDP", "RAW")):
            continue
        namespace = held.task.namespaces["net"]
        if namespace not in groups:
            groups[namespace] = groups_of(held.task.pid)
        with suppress(OSError):
            joined = []
            if groups[namespace]:
                with opened(held) as shared:
                    joined = [group.address for group in groups[namespace] if has_joined(shared, group)]
            if joined:
                yield Found(
                    pid=held.task.pid,
                    subject=held.subject,
                    message=f"{held.named}, which has joined the multicast group {_listed(joined)} and will be in none",
                )


def _signatures(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        if told.signs_md5:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, whose key for TCP's MD5 signatures will be gone",
            )


def _protocol_above(facts: Facts) -> Iterator[Found]:
    for held, told in inet_sockets(facts):
        if told.protocol_above:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a TCP connection with {told.protocol_above} in the kernel, which CRIU does not "
                "know of",
            )


def _corked(facts: Facts) -> Iterator[Found]:
    for held in held_sockets(facts):
        if held.protocol.startswith("UDP"):
            with suppress(OSError), opened(held) as shared:
                corked = bool(_CORK.value(shared))
                if corked:
                    yield Found(
                        pid=held.task.pid,
                        subject=held.subject,
                        message=f"{held.named}, a {held.protocol} socket with UDP_CORK set, which CRIU cannot dump",
                    )


def _control_messages(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.received and not told.pending:
            with suppress(OSError), opened(held) as shared:
                names = [option.name for option in _ADDS_CONTROL if option.value(shared)]
                if names:
                    yield Found(
                        pid=held.task.pid,
                        subject=held.subject,
                        message=f"{held.named}, a unix socket with {_listed(names)} and {told.received} bytes that were "
                        "not read, which CRIU cannot dump",
                    )


def _in_flight(facts: Facts) -> Iterator[Found]:
    for held, told in unix_sockets(facts):
        if told.received and not told.pending and facts.fdinfo(held.hold).get("scm_fds", "0") != "0":
            with suppress(OSError), opened(held) as shared:
                for flown in descriptors_in_flight(shared):
                    if not _can_fly(flown):
                        yield Found(
                            pid=held.task.pid,
                            subject=held.subject,
                            message=f"{held.named}, in which {flown.target} is on its way (SCM_RIGHTS), which CRIU "
                            "cannot dump there",
                        )


def _can_fly(flown: Flown) -> bool:
    if flown.target.startswith("anon_inode:"):
        return flown.target.removeprefix("anon_inode:").strip("[]") in _DUMPABLE
    return not (stat.S_ISCHR(flown.status.st_mode) and os.major(flown.status.st_rdev) in _TERMINALS)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


RULES: Final = (
    Rule(
        name="socket-options",
        severity=Severity.WARNING,
        title="socket options that CRIU does not restore: "
        + ", ".join(sorted({option.name for options in LOST.values() for option in options})),
        effect="They are back at their defaults after a restore.",
        remedy="Let the program set them anew after a restore if they matter.",
        source="criu/sockets.c, dump_socket_opts(); criu/sk-inet.c, dump_ip_opts(); criu/sk-tcp.c, dump_tcp_opts()",
        find=_lost,
    ),
    Rule(
        name="multicast",
        severity=Severity.WARNING,
        title="a socket that has joined a multicast group",
        effect="It is in no group after a restore, and receives nothing of what is sent there.",
        remedy="Let the program join again after a restore.",
        source="ip(7); criu/sk-inet.c",
        find=_multicast,
    ),
    Rule(
        name="tcp-md5",
        severity=Severity.WARNING,
        title="a TCP socket with a key for MD5 signatures (RFC 2385)",
        effect="The key is gone after a restore: a peer that signs is not heard.",
        remedy="Let the program set the key anew after a restore.",
        source="tcp(7), TCP_MD5SIG; criu/sk-tcp.c",
        find=_signatures,
    ),
    Rule(
        name="tcp-ulp",
        severity=Severity.BLOCKER,
        title="a TCP connection with a protocol in the kernel above it (kTLS)",
        effect="Its keys are not in the images: the connection cannot go on.",
        remedy="Let the program use TLS without the kernel, or close the connection first.",
        source="the kernel's net/tls; criu/sk-tcp.c knows nothing of it. Not provoked: needs a kernel with kTLS",
        find=_protocol_above,
    ),
    Rule(
        name="udp-corked",
        severity=Severity.BLOCKER,
        title="a UDP socket with UDP_CORK set",
        effect='The dump would fail ("Can\'t dump corked dgram socket"). ckpt lets the workload go on for a moment and '
        "tries again.",
        remedy="It passes by itself once the program removes UDP_CORK; ckpt tries again.",
        source="udp(7); criu/sk-inet.c, do_dump_one_inet_fd()",
        find=_corked,
        when=When.MOMENT,
    ),
    Rule(
        name="unix-control-messages",
        severity=Severity.BLOCKER,
        title="a unix socket that gets credentials or times with its data, and data that was not read",
        effect='The dump would fail ("Control messages in queue"). ckpt lets the workload go on for a moment and tries '
        "again.",
        remedy="It passes by itself once the program reads it; ckpt tries again.",
        source="unix(7), SO_PASSCRED; criu/sk-queue.c, dump_packet_cmsg()",
        find=_control_messages,
        when=When.MOMENT,
    ),
    Rule(
        name="unix-descriptors",
        severity=Severity.BLOCKER,
        title="a descriptor on its way through a unix socket that CRIU cannot dump there: a terminal, userfaultfd …",
        effect="The dump would fail. ckpt lets the workload go on for a moment and tries again.",
        remedy="It passes by itself once the program receives it; ckpt tries again.",
        source='unix(7), SCM_RIGHTS; criu/sk-queue.c, dump_scm_rights(); criu/tty.c ("likely SCM case")',
        find=_in_flight,
        when=When.MOMENT,
    ),
)
