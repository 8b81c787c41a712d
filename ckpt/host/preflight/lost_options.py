"""The socket options that a restore does not bring back, by the kernel's name for the protocol.

CRIU restores those that criu/sockets.c (dump_socket_opts), criu/sk-inet.c (dump_ip_opts) and criu/sk-tcp.c
(dump_tcp_opts) name. Each of these was set, and was back at its default after a restore.
Source: socket(7), ip(7), ipv6(7), tcp(7), udp(7), netlink(7); the numbers are from <linux/in.h> and its kin.
"""

from __future__ import annotations

from typing import Final

from ckpt.host.socket_options import Option

_SOCKET, _IP, _IPV6, _TCP, _UDP, _NETLINK = 1, 0, 41, 6, 17, 270

_OF_ALL: Final = (
    Option(_SOCKET, 29, "SO_TIMESTAMP"),
    Option(_SOCKET, 35, "SO_TIMESTAMPNS"),
    Option(_SOCKET, 37, "SO_TIMESTAMPING"),
    Option(_SOCKET, 40, "SO_RXQ_OVFL"),
    Option(_SOCKET, 42, "SO_PEEK_OFF"),
    Option(_SOCKET, 44, "SO_LOCK_FILTER"),
    Option(_SOCKET, 46, "SO_BUSY_POLL"),
    Option(_SOCKET, 47, "SO_MAX_PACING_RATE"),
    Option(_SOCKET, 60, "SO_ZEROCOPY"),
)
_OF_IP: Final = (
    Option(_IP, 6, "IP_RECVOPTS"),
    Option(_IP, 10, "IP_MTU_DISCOVER"),
    Option(_IP, 11, "IP_RECVERR"),
    Option(_IP, 12, "IP_RECVTTL"),
    Option(_IP, 13, "IP_RECVTOS"),
    Option(_IP, 19, "IP_TRANSPARENT"),
    Option(_IP, 20, "IP_RECVORIGDSTADDR"),
    Option(_IP, 21, "IP_MINTTL"),
    Option(_IP, 24, "IP_BIND_ADDRESS_NO_PORT"),
)
_OF_IPV6: Final = (
    Option(_IPV6, 23, "IPV6_MTU_DISCOVER"),
    Option(_IPV6, 25, "IPV6_RECVERR"),
    Option(_IPV6, 51, "IPV6_RECVHOPLIMIT"),
    Option(_IPV6, 66, "IPV6_RECVTCLASS"),
    Option(_IPV6, 67, "IPV6_TCLASS"),
    Option(_IPV6, 74, "IPV6_RECVORIGDSTADDR"),
)
# An accepted connection of TCP has the TTL of its first packet here, and sends to no group.
_OF_GROUPS: Final = (
    Option(_IP, 33, "IP_MULTICAST_TTL"),
    Option(_IP, 34, "IP_MULTICAST_LOOP"),
    Option(_IP, 49, "IP_MULTICAST_ALL"),
)
_OF_GROUPS6: Final = (
    Option(_IPV6, 18, "IPV6_MULTICAST_HOPS"),
    Option(_IPV6, 19, "IPV6_MULTICAST_LOOP"),
    Option(_IPV6, 29, "IPV6_MULTICAST_ALL"),
)
_OF_TCP: Final = (
    Option(_TCP, 7, "TCP_SYNCNT"),
    Option(_TCP, 8, "TCP_LINGER2"),
    Option(_TCP, 9, "TCP_DEFER_ACCEPT"),
    Option(_TCP, 13, "TCP_CONGESTION", is_text=True),
    Option(_TCP, 18, "TCP_USER_TIMEOUT"),
    Option(_TCP, 23, "TCP_FASTOPEN"),
    Option(_TCP, 25, "TCP_NOTSENT_LOWAT"),
    Option(_TCP, 27, "TCP_SAVE_SYN"),
    Option(_TCP, 30, "TCP_FASTOPEN_CONNECT"),
    Option(_TCP, 36, "TCP_INQ"),
    Option(_TCP, 37, "TCP_TX_DELAY"),
)
_OF_UDP: Final = (
    Option(_UDP, 101, "UDP_NO_CHECK6_TX"),
    Option(_UDP, 102, "UDP_NO_CHECK6_RX"),
    Option(_UDP, 103, "UDP_SEGMENT"),
    Option(_UDP, 104, "UDP_GRO"),
)
# Of the others nothing is heard in this family.
_OF_UNIX: Final = (
    Option(_SOCKET, 29, "SO_TIMESTAMP"),
    Option(_SOCKET, 35, "SO_TIMESTAMPNS"),
    Option(_SOCKET, 42, "SO_PEEK_OFF"),
    Option(_SOCKET, 76, "SO_PASSPIDFD"),
)
_OF_NETLINK: Final = (
    Option(_NETLINK, 3, "NETLINK_PKTINFO"),
    Option(_NETLINK, 4, "NETLINK_BROADCAST_ERROR"),
    Option(_NETLINK, 5, "NETLINK_NO_ENOBUFS"),
    Option(_NETLINK, 8, "NETLINK_LISTEN_ALL_NSID"),
    Option(_NETLINK, 10, "NETLINK_CAP_ACK"),
    Option(_NETLINK, 11, "NETLINK_EXT_ACK"),
    Option(_NETLINK, 12, "NETLINK_GET_STRICT_CHK"),
)
LOST: Final[dict[str, tuple[Option, ...]]] = {
    "TCP": _OF_ALL + _OF_IP + _OF_TCP,
    "TCPv6": _OF_ALL + _OF_IP + _OF_IPV6 + _OF_TCP,
    "UDP": _OF_ALL + _OF_IP + _OF_GROUPS + _OF_UDP,
    "UDPv6": _OF_ALL + _OF_IP + _OF_IPV6 + _OF_GROUPS + _OF_GROUPS6 + _OF_UDP,
    "RAW": _OF_ALL + _OF_IP + _OF_GROUPS,
    "RAWv6": _OF_ALL + _OF_IPV6 + _OF_GROUPS6,
    "UNIX": _OF_UNIX,
    "UNIX-STREAM": _OF_UNIX,
    "NETLINK": _OF_ALL + _OF_NETLINK,
    "PACKET": _OF_ALL,
}
