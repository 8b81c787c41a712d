"""What was said is understood; whatever the other side sends is a message that was expected, or a CkptError."""

from __future__ import annotations

import contextlib
import io
import tracemalloc

import pytest
from fakes.checkpoints import HOST, INODE, WORKLOAD
from fakes.needs import needs
from hypothesis import given
from hypothesis import strategies as st

from ckpt.codec.messages import (
    BEFORE_MARK_BYTES_MAX,
    HELLO_BYTES_MAX,
    MARK,
    MESSAGE_BYTES_MAX,
    PROTOCOLS,
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Message,
    common_protocol,
    decode,
    encode,
    read_message,
    skip_to_mark,
)
from ckpt.errors import CkptError, NoCommonProtocol, PeerFailed
from ckpt.model.checks import HostCheck, State
from ckpt.model.findings import Finding, Severity
from ckpt.model.needs import (
    KernelFeature,
    NeededHugePages,
    NeededName,
    NeededPid,
    NeededPort,
    Protocol,
)
from ckpt.units import ByteCount, JobName, Pid

PORT = NeededPort(protocol=Protocol.TCP, address="::1", port=80, only_v6=True, foreign_address=True)
NEEDS = needs(
    job=JobName("web"),
    cpu_features=("avx2", "sse2"),
    pids=(NeededPid(pid=Pid(7), name="x\udcff"),),
    files=(INODE,),
    mounts=WORKLOAD.external_mounts,
    cgroups=WORKLOAD.cgroups,
    ports=(PORT,),
    names=(NeededName(name="@abstract"), NeededName(name="/run/x.sock")),
    features=(KernelFeature.RSEQ,),
    huge_pages=(NeededHugePages(page_bytes=ByteCount(1 << 21), count=3),),
    signers=("ab" * 32,),
)
FINDING = Finding(
    rule="port-taken",
    severity=Severity.BLOCKER,
    pid=Pid(9),
    name="nginx",
    subject="tcp 0.0.0.0:80",
    message="it is taken",
    remedy="Stop it.",
    option="",
)
CHECK = HostCheck(name="criu", state=State.WARNING, detail="old", remedy="Install a newer one.")
MESSAGES: tuple[Message, ...] = (
    Hello(protocols=PROTOCOLS, version="0.1.0", host="here"),
    AskFacts(),
    AskNeeds(needs=NEEDS),
    Alive(),
    Facts(host=HOST, checks=(CHECK,)),
    Findings(findings=(FINDING,)),
    Failed(slug="not-root", message="It needs root.", hint="Use sudo.", exit_code=10),
)
KINDS = tuple(type(message) for message in MESSAGES)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_was_said_is_understood(message: Message) -> None:
    stream = io.BytesIO(encode(message) * 2)
    assert [read_message(stream.read, (type(message),), "there") for _ in range(3)] == [
        message,
        message,
        None,
    ]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_ckpt_error(content: bytes) -> None:
    for read in (
        lambda: decode(content, KINDS, "there"),
        lambda: read_message(io.BytesIO(content).read, KINDS, "there"),
        lambda: skip_to_mark(io.BytesIO(content).read, "there"),
    ):
        with contextlib.suppress(CkptError):
            read()


@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_message_is_another_message_or_a_ckpt_error(message: Message, data: st.DataObject) -> None:
    content = bytearray(encode(message)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerFailed):
        decode(bytes(content), KINDS, "there")


def test_a_length_that_lies_costs_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PeerFailed, match="ended after 0 of"):
            read_message(io.BytesIO(MESSAGE_BYTES_MAX.to_bytes(4, "big")).read, (Findings,), "there")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "bound"), [(Hello, HELLO_BYTES_MAX), (Findings, MESSAGE_BYTES_MAX)], ids=["hello", "other"]
)
def test_a_message_beyond_the_bound_is_refused_before_it_is_read(kind: type[Message], bound: int) -> None:
    with pytest.raises(PeerFailed, match=str(bound + 1)):
        read_message(io.BytesIO((bound + 1).to_bytes(4, "big")).read, (kind,), "there")


def test_a_message_that_may_not_come_now_is_refused() -> None:
    with pytest.raises(PeerFailed, match="'findings' where one of hello belongs"):
        read_message(io.BytesIO(encode(MESSAGES[5])).read, (Hello,), "there")


@pytest.mark.parametrize(
    "lie",
    [
        {
            "ports": (
                NeededPort(
                    protocol=Protocol.UDP, address="::", port=70000, only_v6=False, foreign_address=False
                ),
            )
        },
        *(
            {
                "ports": (
                    NeededPort(
                        protocol=Protocol.TCP, address=address, port=80, only_v6=False, foreign_address=False
                    ),
                )
            }
            for address in ("host.example", "", "\udcff", "fe80::1%lo")
        ),
        {"huge_pages": (NeededHugePages(page_bytes=ByteCount(0), count=1),)},
        {"names": (NeededName(name="/run/../etc/passwd"),)},
        {"names": (NeededName(name="relative"),)},
    ],
)
def test_needs_that_no_host_can_have_said_are_refused(lie: dict[str, object]) -> None:
    with pytest.raises(PeerFailed, match="needs"):
        read_message(io.BytesIO(encode(AskNeeds(needs=needs(**lie)))).read, (AskNeeds,), "there")


def test_what_a_login_prints_before_the_mark_is_dropped_and_bounded() -> None:
    stream = io.BytesIO(b"Welcome to \x89ckpt!\n" + MARK + b"rest")
    skip_to_mark(stream.read, "there")
    assert stream.read() == b"rest"
    with pytest.raises(PeerFailed, match=str(BEFORE_MARK_BYTES_MAX)):
        skip_to_mark(io.BytesIO(b"y" * (BEFORE_MARK_BYTES_MAX + 1)).read, "there")


def test_the_highest_common_protocol_is_taken_and_none_names_both_offers() -> None:
    assert common_protocol(Hello(protocols=(99, 1), version="2.0", host="x"), "there") == 1
    with pytest.raises(NoCommonProtocol, match=r"protocol 1, and ckpt 2\.0 there 7, 8"):
        common_protocol(Hello(protocols=(8, 7), version="2.0", host="x"), "there")
