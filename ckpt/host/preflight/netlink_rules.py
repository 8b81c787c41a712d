"""Rules over netlink, packet and ping sockets.

Source: criu/sk-netlink.c, criu/sk-packet.c, criu/sk-inet.c; netlink(7), packet(7), icmp(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import held_sockets, netlink_sockets, packet_sockets
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.model.findings import Severity

_GROUPS_MAX: Final = 32


def _packet_memberships(facts: Facts) -> Iterator[Found]:
    for held, told in packet_sockets(facts):
        if any(count > 1 for count in told.memberships):
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a packet socket that joined one multicast group {max(told.memberships)} times",
            )


def _netlink_data(facts: Facts) -> Iterator[Found]:
    for held, told in netlink_sockets(facts):
        if told.received_bytes:
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a netlink socket with {told.received_bytes} bytes of answers that were not "
                "read",
            )


def _netlink_groups(facts: Facts) -> Iterator[Found]:
    for held, told in netlink_sockets(facts):
        if told.groups and (told.groups[-1] > _GROUPS_MAX or not told.port):
            why = "without a port" if not told.port else f"of which CRIU knows the first {_GROUPS_MAX} only"
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a netlink socket in the multicast group {told.groups[-1]}, {why}",
            )


def _ping(facts: Facts) -> Iterator[Found]:
    for held in held_sockets(facts):
        if held.protocol.startswith("PING"):
            yield Found(
                pid=held.task.pid,
                subject=held.subject,
                message=f"{held.named}, a ping socket, whose address and identifier are lost",
            )


RULES: Final = (
    Rule(
        name="packet-membership",
        severity=Severity.BLOCKER,
        title="a packet socket that joined the same multicast group more than once",
        effect='The dump fails ("Multiple MC membership"), the workload runs on.',
        remedy="Let the program join it once.",
        source="packet(7); criu/sk-packet.c, dump_mreqs()",
        find=_packet_memberships,
    ),
    Rule(
        name="netlink-unread",
        severity=Severity.BLOCKER,
        title="a netlink socket with data that was not read",
        effect='The dump fails ("The socket has data to read"), the workload runs on.',
        remedy="It passes by itself once the program reads it; ckpt tries again.",
        source="criu/sk-netlink.c, can_dump_netlink_sk()",
        find=_netlink_data,
        when=When.MOMENT,
    ),
    Rule(
        name="netlink-groups",
        severity=Severity.BLOCKER,
        title="a netlink socket in a multicast group above 32, or in one without a port",
        effect="The dump fails, the workload runs on.",
        remedy="Let the program leave the group, or bind the socket to a port.",
        source="netlink(7); criu/sk-netlink.c, dump_one_netlink_fd()",
        find=_netlink_groups,
    ),
    Rule(
        name="ping-socket",
        severity=Severity.WARNING,
        title="a ping socket (ICMP datagrams)",
        effect="It comes back without its address and its identifier; the restore fails where the host does not allow "
        "root such a socket (net.ipv4.ping_group_range).",
        remedy="Let the program open it anew after the restore.",
        source="icmp(7); criu/sk-inet.c, gen_uncon_sk(); seen",
        find=_ping,
    ),
)
