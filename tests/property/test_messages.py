"""What was said is understood; whatever the other side sends is a message that was expected, or a CkptError."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from dataclasses import replace

import pytest
from fakes.checkpoints import HOST, INODE, WORKLOAD, a_checkpoint
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
from ckpt.codec.migration_messages import (
    MIGRATION_KINDS,
    PAYLOAD_BYTES_MAX,
    Abort,
    Aborted,
    Accepted,
    AskDirect,
    AskFile,
    AskKnown,
    AskState,
    Commit,
    Direct,
    EndRound,
    FileBlocks,
    FileDigests,
    FileKnown,
    Forget,
    Forgotten,
    Held,
    ImageFile,
    KnownEnd,
    KnownPages,
    Offer,
    Pages,
    Prepare,
    RoundDone,
    Running,
    Stopped,
    Switched,
    SwitchToDirect,
    pack_runs,
    unpack_runs,
)
from ckpt.codec.migration_messages import (
    State as MigrationState,
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
from ckpt.model.pages import PageRun
from ckpt.model.shipping import ShippedDirectory
from ckpt.units import PAGE_BYTES, ByteCount, JobName, Nanoseconds, Pid

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
ID = "0123456789abcdef"
RUNS = pack_runs((PageRun(1, 2), PageRun(9, 1), PageRun(1 << 50, 3)))
OFFER = Offer(
    migration=ID,
    job="web",
    source_host="here",
    needs=NEEDS,
    time="suspend",
    inodes="keep",
    pids="same",
    cgroup="",
    resume=True,
    base="web@latest",
    roots=(Pid(4711), Pid(4713)),
)
PAGES = Pages(
    space="4711/pagemap-shmem-5",
    runs=RUNS,
    plain_bytes=6 * PAGE_BYTES,
    size_bytes=100,
    is_compressed=True,
)
KNOWN = KnownPages(space="1/pagemap-1", runs=RUNS, plain_bytes=192, size_bytes=192, is_compressed=False)
IMAGE = ImageFile(
    root=Pid(0),
    name="carried-0",
    mode=0o600,
    offset=1 << 40,
    plain_bytes=PAYLOAD_BYTES_MAX,
    size_bytes=PAYLOAD_BYTES_MAX,
    is_compressed=False,
)
BLOCKS = FileBlocks(
    number=3,
    path="/srv/db",
    file_bytes=1 << 30,
    first_block=7,
    plain_bytes=5,
    size_bytes=5,
    is_compressed=False,
)
DIRECT = Direct(port=40000, key=bytes(32))
PIDS = (Pid(7), Pid(8))
HELD = Held(pid=Pid(7), pids=PIDS, cgroup="/ckpt/web", restore_ns=Nanoseconds(9), warnings=("tight",))
MADE = ShippedDirectory(path="/srv/data", mode=0o700, uid=7, gid=8)
STATE = MigrationState(migration=ID, state="held", job="", pid=Pid(0))
MOVING: tuple[Message, ...] = (
    AskDirect(migration=ID, address="10.0.0.1"),
    DIRECT,
    SwitchToDirect(),
    Switched(),
    OFFER,
    Accepted(has_pages=True),
    PAGES,
    Stopped(slug="no-space", message="No space.", hint="Free some.", exit_code=14),
    EndRound(number=0),
    RoundDone(number=0, received_bytes=ByteCount(1 << 40)),
    AskKnown(),
    KNOWN,
    KnownEnd(),
    IMAGE,
    AskFile(number=3, path="/srv/db"),
    FileDigests(number=3, plain_bytes=64, size_bytes=60, is_compressed=True),
    FileKnown(number=3, is_there=True, file_bytes=1 << 30),
    BLOCKS,
    Prepare(checkpoint=a_checkpoint()),
    HELD,
    Commit(migration=ID),
    Running(pid=Pid(8), pids=PIDS, cgroup="/ckpt/web", warnings=()),
    Abort(migration=ID),
    Aborted(),
    Forget(migration=ID),
    Forgotten(),
    AskState(migration=ID),
    STATE,
)
MESSAGES: tuple[Message, ...] = (
    Hello(protocols=PROTOCOLS, version="0.1.0", host="here"),
    AskFacts(),
    AskNeeds(needs=NEEDS),
    Alive(),
    Facts(host=HOST, checks=(CHECK,)),
    Findings(findings=(FINDING,)),
    Failed(slug="not-root", message="It needs root.", hint="Use sudo.", exit_code=10),
    *MOVING,
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


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        (replace(OFFER, migration="../../etc"), "migration"),
        (replace(OFFER, job="-x"), "job"),
        (replace(OFFER, base="x" * 257), "base"),
        (replace(OFFER, roots=(Pid(7), Pid(7))), "roots"),
        (replace(OFFER, roots=(Pid(0),)), "roots"),
        (AskDirect(migration=ID, address="evil.example"), "address"),
        (AskDirect(migration="", address="10.0.0.1"), "migration"),
        (replace(DIRECT, port=1 << 16), "port"),
        (replace(DIRECT, key=bytes(16)), "key"),
        (replace(OFFER, needs=needs(names=(NeededName(name="relative"),))), "needs"),
        (replace(PAGES, space="1/../pagemap-1"), "space"),
        (replace(PAGES, plain_bytes=PAYLOAD_BYTES_MAX + PAGE_BYTES), "plain_bytes"),
        (replace(PAGES, plain_bytes=6 * PAGE_BYTES + 1), "plain_bytes"),
        (replace(PAGES, plain_bytes=-PAGE_BYTES), "plain_bytes"),
        (replace(PAGES, size_bytes=6 * PAGE_BYTES), "size_bytes"),
        (replace(PAGES, size_bytes=-1), "size_bytes"),
        (replace(PAGES, is_compressed=False), "size_bytes"),
        (replace(PAGES, runs=RUNS[:-1]), "runs"),
        (replace(PAGES, runs=pack_runs((PageRun(1, 7),))), "runs"),
        (replace(PAGES, runs=pack_runs((PageRun(2, 3), PageRun(1, 3)))), "runs"),
        (replace(PAGES, runs=pack_runs((PageRun(1, 6), PageRun(7, 0)))), "runs"),
        (replace(PAGES, runs=pack_runs((PageRun((1 << 64) - 6, 6),))), "runs"),
        (replace(KNOWN, runs=b""), "runs"),
        (replace(KNOWN, runs=b"", plain_bytes=0, size_bytes=0, is_compressed=False), "plain_bytes"),
        (replace(IMAGE, name="../core"), "name"),
        (replace(IMAGE, mode=0o100644), "mode"),
        (replace(IMAGE, offset=(1 << 63) - 1), "offset"),
        (replace(BLOCKS, path="srv/db"), "path"),
        (replace(BLOCKS, number=-1), "number"),
        (replace(HELD, pid=Pid(9)), "pid"),
        (replace(HELD, cgroup="/../x"), "cgroup"),
        (replace(STATE, state="x" * 99), "state"),
        (replace(STATE, state="gone"), "state"),
        (replace(HELD, pids=(Pid(7),) * 4097), "pids"),
        (replace(OFFER, time="never"), "time"),
        (replace(OFFER, inodes=""), "inodes"),
        (replace(OFFER, pids="some"), "pids"),
        (replace(OFFER, source_host="x" * 256), "source_host"),
        (Forget(migration=""), "migration"),
        (Prepare(checkpoint=a_checkpoint(), absent=("/srv/../etc/passwd",)), "absent"),
        (Prepare(checkpoint=a_checkpoint(), made=(replace(MADE, path="srv"),)), "made"),
        (Prepare(checkpoint=a_checkpoint(), made=(MADE, replace(MADE, mode=0o40755))), "made"),
        (Prepare(checkpoint=a_checkpoint(), made=(replace(MADE, uid=1 << 32),)), "made"),
    ],
)
def test_what_no_ckpt_says_of_a_migration_is_refused(lie: Message, field: str) -> None:
    with pytest.raises(PeerFailed, match=f"cannot be read: {field}"):
        read_message(io.BytesIO(encode(lie)).read, (type(lie),), "there")


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))))
def test_runs_are_unpacked_as_they_were_packed(pairs: list[tuple[int, int]]) -> None:
    runs = tuple(PageRun(*pair) for pair in pairs)
    assert unpack_runs(pack_runs(runs)) == runs


def test_every_message_of_a_migration_was_tried() -> None:
    assert {type(message) for message in MOVING} == set(MIGRATION_KINDS.values())


def test_what_a_login_prints_before_the_mark_is_dropped_and_bounded() -> None:
    stream = io.BytesIO(b"Welcome to \x89ckpt!\n" + MARK + b"rest")
    skip_to_mark(stream.read, "there")
    assert stream.read() == b"rest"
    with pytest.raises(PeerFailed, match=str(BEFORE_MARK_BYTES_MAX)):
        skip_to_mark(io.BytesIO(b"y" * (BEFORE_MARK_BYTES_MAX + 1)).read, "there")


def test_the_highest_common_protocol_is_taken_and_none_names_both_offers() -> None:
    assert common_protocol(Hello(protocols=(99, 1), version="2.0", host="x"), "there") == 1
    with pytest.raises(NoCommonProtocol, match=r"the protocols 1, 2, and ckpt 2\.0 there 7, 8"):
        common_protocol(Hello(protocols=(8, 7), version="2.0", host="x"), "there")
