"""Rules over sockets that this kernel cannot provoke: with what a kernel that has them would tell."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ckpt.host.diag_messages import InetSocket
from ckpt.host.inspection import snapshot
from ckpt.host.preflight import checking, held_sockets
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.held_sockets import HeldSocket
from ckpt.host.preflight.socket_option_rules import RULES as OPTION_RULES
from ckpt.host.preflight.socket_rules import RULES
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.units import InodeNumber, Pid


@pytest.fixture
def pair() -> Iterator[socket.socket]:
    here, there = socket.socketpair()
    with here, there:
        yield here


def look(rules: tuple[Any, ...], rule: str) -> list[Finding]:
    taken = snapshot.take([Pid(os.getpid())], "", None)
    chosen = [each for each in rules if each.name == rule]
    return list(checking.check(Facts(taken, DumpOptions(), ""), rules=chosen))


@pytest.mark.parametrize("protocol", ["SCTP", "ALG", "CAN", "TIPC", "SMC", "L2CAP", "KCM", "DCCP"])
def test_a_protocol_that_criu_has_no_word_for_is_a_blocker(
    protocol: str, pair: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_sockets, "_protocol", lambda _hold: protocol)
    found = look(RULES, "socket-protocol")
    assert f"a socket of {protocol}, which CRIU cannot dump" in found[0].message
    assert found[0].severity is Severity.BLOCKER


def test_tls_in_the_kernel_is_a_blocker(pair: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    told = InetSocket(
        inode=InodeNumber(os.fstat(pair.fileno()).st_ino),
        family=socket.AF_INET,
        state=1,
        local_port=1,
        remote_port=2,
        local="127.0.0.1",
        remote="127.0.0.1",
        received=0,
        sent=0,
        protocol_above="tls",
        signs_md5=False,
    )

    def inet_sockets(facts: Facts) -> Iterator[tuple[HeldSocket, InetSocket]]:
        yield held_sockets.held_sockets(facts)[0], told

    monkeypatch.setattr("ckpt.host.preflight.socket_option_rules.inet_sockets", inet_sockets)
    found = look(OPTION_RULES, "tcp-ulp")
    assert "a TCP connection with tls in the kernel" in found[0].message
    assert found[0].severity is Severity.BLOCKER
