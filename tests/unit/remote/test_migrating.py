"""A source and a target on two pipes: each act reaches the other side whole, and so does each failure."""

from __future__ import annotations

import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint
from fakes.needs import NO_NEEDS
from fakes.receptions import HELD, RUNNING, MemoryReception

from ckpt.codec.messages import PROTOCOLS, Facts, Hello
from ckpt.codec.migration_messages import (
    PAYLOAD_BYTES_MAX,
    Abort,
    Aborted,
    Accepted,
    AskState,
    Commit,
    Held,
    Offer,
    Prepare,
    Running,
    State,
)
from ckpt.errors import Interrupted, NoCommonProtocol, NotRoot, PeerFailed, PeerRefused, Unreachable
from ckpt.model.pages import PageRun
from ckpt.remote import direct, far_side, serving
from ckpt.remote import peer as peer_module
from ckpt.remote.far_side import FarSide
from ckpt.remote.inflow import PipeInflow
from ckpt.remote.peer import Peer
from ckpt.remote.serving import ASKING, Answers, serve
from ckpt.store.wire_seal import WireCipher
from ckpt.units import PAGE_BYTES, ByteCount, Pid

ID = "0123456789abcdef"
OFFER = Offer(
    migration=ID,
    job="web",
    source_host="here",
    needs=NO_NEEDS,
    time="suspend",
    inodes="keep",
    pids="same",
    cgroup="",
    resume=False,
)
SPACE = "4711/pagemap-1"


class Deflate:
    """Fits Compressor."""

    def compress(self, plain: bytes | memoryview) -> bytes:
        return zlib.compress(plain, 1)

    def decompress(self, packed: bytes | memoryview, plain_bytes: int) -> bytes:
        return zlib.decompressobj().decompress(packed, plain_bytes)


class PipeProgram:
    """What RunningProgram is, on two pipes. Fits SshConnection too."""

    host = "there"
    address = "127.0.0.1"

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._is_closed = False
        self.written_bytes = 0
        self.dialled: list[socket.socket] = []
        self.is_blocked = False

    def run(self, _command: str) -> PipeProgram:
        return self

    @property
    def has_some(self) -> bool:
        import select

        return bool(select.select([self._source], [], [], 0)[0])

    def dial(self, port: int, timeout_s: float) -> socket.socket:
        if self.is_blocked:
            raise Unreachable(host=self.host, reason=f"port {port}: Connection refused")
        self.dialled.append(socket.create_connection((self.address, port), timeout_s))
        return self.dialled[-1]

    def read(self, count: int, _timeout_s: float) -> bytes:
        return os.read(self._source, count)

    def read_errors(self, _count: int) -> bytes:
        return b""

    def write(self, content: bytes | memoryview, _timeout_s: float) -> None:
        rest = memoryview(content)
        self.written_bytes += len(rest)
        while rest:
            rest = rest[os.write(self._sink, rest) :]

    def exit_status(self, _timeout_s: float) -> int | None:
        return None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            os.close(self._sink)
            os.close(self._source)


def refuse() -> Facts:
    raise NotRoot(operation="ckpt agent", uid=1000)


class Bed:
    """Both sides; `ended` is what the target's side ended with."""

    def __init__(self, reception: MemoryReception, protocols: tuple[int, ...] = PROTOCOLS) -> None:
        to_target, from_source = os.pipe()
        to_source, from_target = os.pipe()
        self.ended: BaseException | None = None
        here = Hello(protocols=protocols, version="0", host="here")
        there = Hello(protocols=protocols, version="0", host="there")
        answers = Answers(
            facts=refuse,
            judge=lambda _needs: (),
            receive=reception,
            compressor=Deflate(),
            new_cipher=WireCipher,
        )

        def write(content: bytes | memoryview) -> None:
            os.write(from_target, content)

        def target() -> None:
            try:
                serve(PipeInflow(to_target, ASKING), write, there, answers)
            except BaseException as error:
                self.ended = error
            finally:
                os.close(to_target)
                os.close(from_target)

        self.thread = threading.Thread(target=target)
        self.thread.start()
        self.ssh: Any = PipeProgram(to_source, from_source)
        self.peer = Peer(self.ssh, program="ckpt", own=here, note=lambda _line: None)

    def far_side(self) -> FarSide:
        return FarSide(self.peer, Deflate(), ID)

    def close(self) -> None:
        self.peer.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def migrating(reception: MemoryReception) -> Iterator[tuple[FarSide, Bed]]:
    with closing(Bed(reception)) as bed:
        yield bed.far_side(), bed


def pages(first: int, count: int) -> memoryview:
    return memoryview(b"".join(bytes([(first + number) % 251]) * PAGE_BYTES for number in range(count)))


def send_much(target: FarSide) -> None:
    for _ in range(1000):
        target.pages(SPACE, [PageRun(0, 256)], pages(0, 256))


def test_who_is_alive_and_never_answers_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "ANSWER_S", 0.1)
    monkeypatch.setattr(serving, "ALIVE_EVERY_S", 0.02)
    over = threading.Event()

    class Slow(MemoryReception):
        def end_round(self, number: int) -> ByteCount:
            over.wait(20)
            return super().end_round(number)

    with migrating(Slow()) as (target, _):
        target.offer(OFFER)
        try:
            with pytest.raises(PeerFailed, match=r"alive, and has not answered for 0.1 s"):
                target.end_round(0)
        finally:
            over.set()


def test_a_workload_moves_from_one_side_to_the_other() -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, bed):
        assert not target.offer(OFFER).has_pages
        target.pages(SPACE, [PageRun(1, 2), PageRun(9, 1)], pages(1, 3))
        target.pages(SPACE, [PageRun(1000, 1024)], pages(1000, 1024))
        done = target.end_round(0)
        assert (done.number, done.received_bytes) == (0, 1027 * PAGE_BYTES)
        assert len(reception.memory) == 1027
        assert reception.memory[SPACE, 9] == bytes([3]) * PAGE_BYTES
        assert len(list(target.known())) == 1027
        target.image_file(Pid(4711), "core-1.img", 0o600, 0, memoryview(b"abc"))
        target.image_file(Pid(4711), "core-1.img", 0o600, 3, memoryview(b"def"))
        known, digests = target.ask_file(0, "/srv/db")
        assert known.is_there
        assert len(digests) == 200_000 * 32 > PAYLOAD_BYTES_MAX
        target.file_blocks(0, "/srv/db", 5, 0, memoryview(b"block"))
        assert target.prepare(a_checkpoint()).pids == HELD.pids
        assert target.commit() == RUNNING
        target.forget()
        assert target.sent_bytes > 1027 * PAGE_BYTES
    assert bed.ended is None
    assert bytes(reception.files[4711, "core-1.img"]) == b"abcdef"
    assert reception.blocks[0][1] == b"block"
    assert reception.journal[-4:] == ["prepare", "decided", "Commit", "forget"]


def test_texts_of_the_other_side_cannot_command_the_terminal() -> None:
    with migrating(MemoryReception()) as (target, _):
        assert target.prepare(a_checkpoint()).warnings == ("tight\\x1b",)
        target.abort()


def test_a_full_disk_stops_the_transfer_early_and_it_can_be_aborted() -> None:
    reception = MemoryReception(fail_at="pages")
    with migrating(reception) as (target, bed):
        target.offer(OFFER)
        with pytest.raises(PeerRefused, match="No space left in /there") as caught:
            send_much(target)
        assert (caught.value.their_slug, caught.value.their_exit_code) == ("no-space", 14)
        with pytest.raises(PeerRefused):
            target.end_round(0)
        target.abort()
        assert target.state() == State(migration=ID, state="held", job="web", pid=Pid(7))
    assert bed.ended is None
    assert reception.journal == ["offer", "pages", "abort", "state"]


def test_a_question_sent_before_the_failure_was_heard_is_refused_for_the_same_reason() -> None:
    with migrating(MemoryReception(fail_at="image_file")) as (target, _):
        target.image_file(Pid(1), "x.img", 0o600, 0, memoryview(b"x"))
        with pytest.raises(PeerRefused, match="No space"):
            target.prepare(a_checkpoint())
        target.abort()


def test_a_restore_that_fails_is_an_answer() -> None:
    with migrating(MemoryReception(fail_at="prepare")) as (target, _):
        with pytest.raises(PeerRefused, match="no such pid") as caught:
            target.prepare(a_checkpoint())
        assert caught.value.their_exit_code == 22
        target.abort()


def test_a_source_that_is_gone_while_it_is_held_ends_the_far_side() -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, bed):
        target.prepare(a_checkpoint())
    assert isinstance(bed.ended, PeerFailed)
    assert not isinstance(bed.ended, PeerRefused)
    assert reception.journal == ["prepare", "decided"]


def test_a_commit_reaches_a_new_connection() -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, _):
        assert target.state().state == "held"
        assert target.commit() == RUNNING
    assert reception.journal == ["state", f"commit {ID}"]


def test_a_ckpt_that_cannot_migrate_is_told() -> None:
    with closing(Bed(MemoryReception(), protocols=(1,))) as bed:
        assert bed.peer.judge(NO_NEEDS) == ()
        with pytest.raises(NoCommonProtocol, match="protocol 1"):
            bed.far_side()


def test_a_slow_link_gets_compressed_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, bed):
        # As if it had been measured: far slower than any compressor.
        bed.peer.writer.meter.took(8 << 20, 1, waited=False)
        bed.peer.writer.meter.took(1 << 10, 1, waited=False)
        target.pages(SPACE, [PageRun(0, 1024)], pages(0, 1024))
        target.end_round(0)
        assert target.sent_bytes < 100 << 10
    assert reception.memory[SPACE, 1023] == bytes([1023 % 251]) * PAGE_BYTES


def test_all_that_is_said_after_the_switch_goes_beside_ssh() -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, bed):
        target.offer(OFFER)
        assert target.go_direct(WireCipher) == ""
        by_ssh = bed.ssh.written_bytes
        target.pages(SPACE, [PageRun(1000, 1024)], pages(1000, 1024))
        assert target.end_round(0).received_bytes == 1024 * PAGE_BYTES
        assert len(list(target.known())) == 1024
        assert target.prepare(a_checkpoint()).pids == HELD.pids
        assert target.commit() == RUNNING
        assert bed.ssh.written_bytes == by_ssh
    # The end of the stream was said: it is no break.
    assert bed.ended is None
    assert reception.memory[SPACE, 2023] == bytes([2023 % 251]) * PAGE_BYTES
    assert reception.journal[-3:] == ["prepare", "decided", "Commit"]


def test_where_no_connection_comes_through_ssh_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "LISTENING_S", 0.2)
    with migrating(MemoryReception()) as (target, bed):
        bed.ssh.is_blocked = True
        assert target.go_direct(WireCipher).endswith("Connection refused")
        assert not target.offer(OFFER).has_pages
        # One with another key is not let in.
        bed.ssh.is_blocked = False
        assert "nobody who has its key came" in target.go_direct(lambda _key: WireCipher(bytes(32)))
        assert target.state().state == "held"
    assert bed.ended is None


def test_a_direct_connection_that_breaks_is_the_way_that_broke_for_both() -> None:
    reception = MemoryReception()
    with migrating(reception) as (target, bed):
        assert target.go_direct(WireCipher) == ""
        target.prepare(a_checkpoint())
        bed.ssh.dialled[0].shutdown(socket.SHUT_RDWR)
        with pytest.raises(PeerFailed) as caught:
            target.commit()
        assert not isinstance(caught.value, PeerRefused)
    assert isinstance(bed.ended, PeerFailed)
    assert "the direct connection was cut" in bed.ended.reason
    assert reception.journal == ["prepare", "decided"]


class Talkative(MemoryReception):
    def prepare(self, prepare: Prepare, held: Callable[[Held], Commit | Abort]) -> Running | Aborted:
        decision = held(replace(HELD, warnings=("x" * (1 << 20), "short")))
        return RUNNING if isinstance(decision, Commit) else Aborted()


def test_a_warning_without_end_does_not_flood_the_terminal() -> None:
    with migrating(Talkative()) as (target, _):
        long, short = target.prepare(a_checkpoint()).warnings
        assert (len(long), short) == (16384, "short")
        target.abort()


class OfAnother(MemoryReception):
    def state(self, ask: AskState) -> State:
        return replace(super().state(ask), migration="f" * 16)


def test_the_state_of_another_migration_is_no_answer() -> None:
    with (
        migrating(OfAnother()) as (target, _),
        pytest.raises(PeerFailed, match=r"nonsense: the state of migration ffff"),
    ):
        target.state()


def test_digests_without_end_are_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_side, "FILE_DIGESTS_MAX", 199_999)
    with (
        migrating(MemoryReception()) as (target, _),
        pytest.raises(PeerFailed, match="more than 199999 digests of /srv/db"),
    ):
        target.ask_file(0, "/srv/db")


def test_pages_without_end_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_side, "_known_pages_max", lambda: 2)
    with migrating(MemoryReception()) as (target, _):
        target.offer(OFFER)
        target.pages(SPACE, [PageRun(1, 3)], pages(1, 3))
        with pytest.raises(PeerFailed, match="more than 2 pages"):
            list(target.known())


def test_answers_without_end_end_an_abort() -> None:
    with migrating(MemoryReception()) as (target, bed):
        for _ in range(100):
            bed.peer.say(OFFER)
        with pytest.raises(PeerFailed, match="16 answers, and none to that"):
            target.abort()


class InterruptedReception(MemoryReception):
    def offer(self, offer: Offer) -> Accepted:
        raise Interrupted(operation="ckpt agent")


def test_a_signal_ends_the_far_side_so_that_another_one_can_take_over() -> None:
    with migrating(InterruptedReception()) as (target, bed):
        with pytest.raises(PeerFailed):
            target.offer(OFFER)
        bed.thread.join(20)
    assert isinstance(bed.ended, Interrupted)
