"""CRIU's nftables tables: find those that a failed or killed CRIU left behind, and remove exactly one.

To keep packets away from a frozen connection, CRIU makes a table "inet CRIU-<id>" for the time of the dump,
and again until the restore is over. The name is cut to what its buffer holds. While such a table exists,
the connection's packets are dropped.

Rule: a table is removed by its name alone, never by a pattern: others may be at work.
Source: criu/netfilter.c (nftables_get_table); linux/netfilter/nf_tables.h; the program nft is not needed.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.criu.log import HEAD_BYTES
from ckpt.host.network.namespace import within

RUN_ID_CHARS: Final = 21
"""How much of the run id the table's name holds."""

_PREFIX: Final = "CRIU-"
_RUN_ID: Final = re.compile(rb"CRIU run id = ([0-9a-f-]{36})")

_NETLINK_NETFILTER: Final = 12
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFNL_MSG_BATCH_BEGIN: Final = 0x10
_NFNL_MSG_BATCH_END: Final = 0x11
_NFT_MSG_GETTABLE: Final = 1
_NFT_MSG_DELTABLE: Final = 2
_NFPROTO_ANY: Final = 0
_NFPROTO_INET: Final = 1
_NFTA_TABLE_NAME: Final = 1
_NLM_F_REQUEST: Final = 0x1
_NLM_F_ACK: Final = 0x4
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct(">BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ENOENT: Final = 2
_RECEIVE_BYTES: Final = 1 << 16
_TIMEOUT_S: Final = 5.0


def table_of(run_id: str) -> str:
    """The name of the table of a dump; `run_id` is Inventory.run_id or run_id_in()."""
    return f"{_PREFIX}{run_id[:RUN_ID_CHARS]}"


def run_id_in(log: Path) -> str:
    """The run id that CRIU wrote to its log (at LogLevel.INFO), for a dump without inventory; "" if none."""
    with suppress(OSError), log.open("rb") as file:
        # CRIU makes it twice when it serves a request: the later one counts (criu/crtools.c, cr-service.c).
        found = _RUN_ID.findall(file.read(min(HEAD_BYTES, 1 << 16)))
        if found:
            return str(found[-1].decode())
    return ""


def list_tables(namespace: int | None = None) -> tuple[str, ...]:
    """The names of CRIU's tables in this network namespace, or the one of a descriptor; none without nftables.

    Raises:
        OsRefused: the kernel did not tell.
    """
    return tuple(name for name in _names(namespace, _NFPROTO_INET) if name.startswith(_PREFIX))


def count_tables(namespace: int) -> int:
    """How many tables others than CRIU have made in the network namespace.

    Raises:
        OsRefused: the kernel did not tell.
    """
    return sum(not name.startswith(_PREFIX) for name in _names(namespace, _NFPROTO_ANY))


def _names(namespace: int | None, family: int) -> list[str]:
    question = _message(_NFT_MSG_GETTABLE, _NLM_F_REQUEST | _NLM_F_DUMP, sequence=1, family=family)
    try:
        with _open(namespace) as netlink:
            netlink.send(question)
            return [_name(payload) for kind, payload in _answers(netlink) if kind != _NLMSG_ERROR]
    except OSError as error:
        raise OsRefused(operation="list", subject="nftables' tables", reason=_reason(error)) from error


def remove_table(name: str, namespace: int | None = None) -> bool:
    """Remove one of CRIU's tables from this network namespace, or the one of a descriptor; False if it is not there.

    Raises:
        ValueError: not a name that CRIU gives.
        OsRefused: the kernel refused.
    """
    if not name.startswith(_PREFIX) or len(name) > len(_PREFIX) + RUN_ID_CHARS or "\0" in name:
        raise ValueError(name)
    encoded = name.encode() + b"\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(encoded), _NFTA_TABLE_NAME) + encoded
    attribute += b"\0" * (-len(attribute) % 4)
    batch = (
        _batch(_NFNL_MSG_BATCH_BEGIN, sequence=1)
        + _message(_NFT_MSG_DELTABLE, _NLM_F_REQUEST | _NLM_F_ACK, sequence=2, content=attribute)
        + _batch(_NFNL_MSG_BATCH_END, sequence=3)
    )
    try:
        with _open(namespace) as netlink:
            netlink.send(batch)
            code = next((_error(payload) for kind, payload in _answers(netlink) if kind == _NLMSG_ERROR), 0)
    except OSError as error:
        raise OsRefused(
            operation="remove", subject=f"the nftables table {name}", reason=_reason(error)
        ) from error
    if code not in {0, _ENOENT}:
        raise OsRefused(operation="remove", subject=f"the nftables table {name}", reason=os.strerror(code))
    return code == 0


def _open(namespace: int | None) -> socket.socket:
    # A socket stays in the namespace in which it was made.
    with nullcontext() if namespace is None else within(namespace):
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    netlink.settimeout(_TIMEOUT_S)
    netlink.bind((0, 0))
    return netlink


def _message(
    kind: int, flags: int, *, sequence: int, content: bytes = b"", family: int = _NFPROTO_INET
) -> bytes:
    payload = _FAMILY.pack(family, 0, 0) + content
    return _HEADER.pack(
        _HEADER.size + len(payload), _NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, 0
    ) + payload  # fmt: skip


def _batch(kind: int, *, sequence: int) -> bytes:
    payload = _FAMILY.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
    return _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST, sequence, 0) + payload


def _answers(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The messages that come, up to and with the one that ends a list or acknowledges."""
    while True:
        data = netlink.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if not _HEADER.size <= length <= len(data) - offset:
                raise OSError(0, "a netlink message with a wrong length")
            payload = data[offset + _HEADER.size : offset + length]
            if kind == _NLMSG_DONE:
                return
            yield kind, payload
            if kind == _NLMSG_ERROR:
                return
            offset += -(-length // 4) * 4


def _error(payload: bytes) -> int:
    return -int.from_bytes(payload[:4], "little", signed=True)


def _name(payload: bytes) -> str:
    offset = _FAMILY.size
    while offset + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < _ATTRIBUTE.size:
            break
        if kind == _NFTA_TABLE_NAME:
            return payload[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += -(-length // 4) * 4
    return ""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
