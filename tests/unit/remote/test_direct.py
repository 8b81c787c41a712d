"""The connection beside SSH: nothing but what its source said, in order and to its end, is ever believed."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.codec.messages import encode
from ckpt.codec.migration_messages import AskDirect, Direct, EndRound, Switched, SwitchToDirect
from ckpt.errors import OsRefused, PeerFailed
from ckpt.remote import direct
from ckpt.remote.direct import Switching, begin_stream
from ckpt.remote.inflow import Inflow
from ckpt.remote.records import HELLO_BYTES, RECORD_BYTES_MAX, RecordReader, RecordWriter
from ckpt.store.wire_seal import WireCipher

KEY = bytes(range(32))
ID = "0123456789abcdef"
SAID = (b"first", b"second", bytes(range(256)) * 4096)


class Tap:
    """What a writer sends, caught on the way: HELLO, a record for each of SAID, and END."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self._there = there
        self._caught = bytearray()
        thread = threading.Thread(target=self._catch)
        thread.start()
        writer = RecordWriter(here, WireCipher(KEY), ID, "there", 20)
        for said in SAID:
            writer.write(said)
        writer.close()
        thread.join(20)
        there.close()
        self.hello, *self.records = _split(bytes(self._caught))

    def _catch(self) -> None:
        while piece := self._there.recv(1 << 20):
            self._caught += piece


@pytest.fixture(scope="module")
def tap() -> Tap:
    return Tap()


def _split(stream: bytes) -> Iterator[bytes]:
    while stream:
        end = 4 + struct.unpack(">I", stream[:4])[0]
        yield stream[:end]
        stream = stream[end:]


def heard(records: list[bytes], *, key: bytes = KEY, piece: int = 1 << 16) -> bytes:
    """What a reader makes of these records and the end of the connection."""
    here, there = socket.socketpair()

    def send() -> None:
        # A reader that has found something wrong is gone before the rest.
        with here, suppress(BrokenPipeError):
            here.sendall(b"".join(records))

    thread = threading.Thread(target=send)
    thread.start()
    reader = RecordReader(there, WireCipher(key), "here", 20)
    content, found = bytearray(), memoryview(bytearray(piece))
    try:
        while count := reader.fill(found):
            content += found[:count]
        assert reader.fill(found) == 0
    finally:
        reader.close()
        thread.join(20)
    return bytes(content)


@pytest.mark.parametrize("piece", [1, 5, 100_000, 1 << 20])
def test_what_was_said_comes_whole_whatever_is_asked_for_at_once(tap: Tap, piece: int) -> None:
    records = tap.records if piece > 1 else [*tap.records[:2], _sealed_end(2)]
    assert heard(records, piece=piece) == b"".join(SAID if piece > 1 else SAID[:2])


def _sealed_end(number: int) -> bytes:
    length = struct.pack(">I", 16)
    record = bytearray(16)
    WireCipher(KEY).seal_into(number + 1, memoryview(b""), length, memoryview(record))
    return length + record


def test_a_cut_is_never_an_end(tap: Tap) -> None:
    whole = b"".join(tap.records)
    # Between records, and within the length, the sealed bytes and END.
    for kept in (0, 2, len(tap.records[0]), len(tap.records[0]) + 9, len(whole) - 20, len(whole) - 1):
        with pytest.raises(PeerFailed, match="was cut"):
            heard([whole[:kept]])


@given(st.data())
def test_any_changed_bit_is_noticed_before_anything_of_its_record_is_used(
    tap: Tap, data: st.DataObject
) -> None:
    records = [*tap.records[:2], _sealed_end(2)]
    stream = bytearray(b"".join(records))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PeerFailed, match=r"changed on the way|was cut|a record of"):
        heard([bytes(stream)])


@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 0, 1), (0, 2), (0, 1, 1)], ids=["swapped", "repeated", "lost", "again"]
)
def test_records_out_of_their_place_are_refused(tap: Tap, order: tuple[int, ...]) -> None:
    with pytest.raises(PeerFailed, match="changed on the way"):
        heard([tap.records[number] for number in order])


def test_another_key_and_the_hello_again_are_refused(tap: Tap) -> None:
    with pytest.raises(PeerFailed, match="changed on the way"):
        heard(tap.records, key=bytes(32))
    with pytest.raises(PeerFailed, match="changed on the way"):
        heard([tap.hello, *tap.records])


@pytest.mark.parametrize("size_bytes", [0, 15, RECORD_BYTES_MAX + 17, 0xFFFFFFFF])
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(size_bytes: int) -> None:
    with pytest.raises(PeerFailed, match=f"a record of {size_bytes} bytes"):
        heard([struct.pack(">I", size_bytes)])


def test_a_link_that_takes_nothing_is_given_up() -> None:
    here, there = socket.socketpair()
    writer = RecordWriter(here, WireCipher(KEY), ID, "there", 0.05)
    with pytest.raises(PeerFailed, match=r"it took nothing for 0\.05 s"):
        writer.write(bytes(64 << 20))
    # Half a record is out: nothing may follow it.
    with pytest.raises(PeerFailed, match="closed here"):
        writer.write(b"more")
    writer.close()
    there.close()


class Far:
    """The far side's port, with an inflow that is still on SSH."""

    def __init__(self, ssh_connection: str = "") -> None:
        self.inflow = Inflow(lambda _count: b"what came over SSH", "the source")
        self.switching = Switching(self.inflow, WireCipher, ssh_connection)
        answer = self.switching.take(AskDirect(migration=ID, address="127.0.0.1"))
        assert isinstance(answer, Direct)
        self.direct = answer

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.direct.port), 20)

    def begin(self, key: bytes) -> RecordWriter:
        return begin_stream(self.dial(), WireCipher(key), ID, "there", 20)


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()
    yield far
    far.switching.close()


def test_strangers_who_come_first_are_dropped_and_keep_nobody_out(far: Far, tap: Tap) -> None:
    assert len(tap.hello) == HELLO_BYTES
    silent, wordy, one_byte, gone = (far.dial() for _ in range(4))
    wordy.sendall(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n" + bytes(1000))
    one_byte.sendall(b"x")
    gone.close()
    # One who knows everything but the key, and a right hello of another connection.
    wrong, replayed = far.begin(os.urandom(32)), far.dial()
    replayed.sendall(tap.hello)
    writer = far.begin(far.direct.key)
    far.inflow.read(4)
    assert far.switching.take(SwitchToDirect()) == Switched()
    with pytest.raises(OSError, match=r"refused|reset"):
        far.dial().recv(1)
    writer.write(encode(EndRound(number=3)))
    # What SSH still had is dropped.
    assert far.inflow.message((EndRound,)) == EndRound(number=3)
    writer.close()
    assert far.inflow.message((EndRound,)) is None
    with pytest.raises(OsRefused):
        far.switching.take(AskDirect(migration=ID, address="127.0.0.1"))
    for each in (silent, wordy, one_byte, wrong, replayed):
        each.close()


def test_without_the_right_one_it_gives_up_in_time_and_ssh_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "LISTENING_S", 0.1)
    far = Far()
    with far.dial(), pytest.raises(OsRefused, match="nobody who has its key came"):
        far.switching.take(SwitchToDirect())
    with pytest.raises(OsRefused, match="none was asked for"):
        far.switching.take(SwitchToDirect())
    assert far.inflow.read(4) == b"what"
    far.switching.close()


def test_each_port_has_a_key_of_its_own_and_the_one_before_it_is_closed(far: Far) -> None:
    again = far.switching.take(AskDirect(migration=ID, address="127.0.0.1"))
    assert isinstance(again, Direct)
    assert again.key != far.direct.key
    assert again.key.hex() not in repr(again)
    with pytest.raises(ConnectionRefusedError):
        far.dial()


def test_it_listens_where_ssh_came_in_and_no_name_is_asked_for() -> None:
    far = Far("192.0.2.1 50000 127.0.0.9 22")
    socket.create_connection(("127.0.0.9", far.direct.port), 20).close()
    with pytest.raises(ConnectionRefusedError):
        far.dial()
    far.switching.close()
    lacking = Switching(far.inflow, WireCipher, "192.0.2.1 50000 localhost 22")
    with pytest.raises(OsRefused, match="listen at localhost"):
        lacking.take(AskDirect(migration=ID, address="127.0.0.1"))


def test_a_port_that_nobody_came_to_in_time_is_closed_while_the_source_says_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patient = Far()
    patient.switching.expire()
    patient.dial().close()
    monkeypatch.setattr(direct, "LISTENING_S", 0.0)
    late = Far()
    late.switching.expire()
    with pytest.raises(ConnectionRefusedError):
        late.dial()
    patient.switching.close()
