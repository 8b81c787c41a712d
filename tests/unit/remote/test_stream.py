"""What goes out and what comes in: in order, bounded, alive, and never waited for without an end."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.codec.messages import Alive, AskFacts, Message, encode
from ckpt.codec.migration_messages import AskKnown, EndRound, Pages
from ckpt.errors import CkptError, PeerFailed
from ckpt.remote.inflow import Inflow, PipeInflow
from ckpt.remote.stream import QUEUE_BYTES, BulkWriter
from ckpt.units import PAGE_BYTES

ROUND = EndRound(number=3)
PAGES = Pages(
    space="1/pagemap-1",
    runs=bytes(8) + b"\1\0\0\0",
    plain_bytes=PAGE_BYTES,
    size_bytes=PAGE_BYTES,
    is_compressed=False,
)
CONTENT = bytes(range(256)) * 16


class Gate:
    """A link that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self._open = threading.Event()

    def write(self, content: bytes | memoryview) -> None:
        assert self._open.wait(20)
        self.taken += content

    def open(self) -> None:
        self._open.set()


class Pipe:
    """A pipe whose reading end is an Inflow with little patience."""

    def __init__(self, silence_s: float) -> None:
        self._reader, self.writer = os.pipe()
        self.inflow = PipeInflow(self._reader, "there")
        self.inflow.silence_s = silence_s

    def close(self) -> None:
        os.close(self._reader)
        if self.writer >= 0:
            os.close(self.writer)

    def end(self) -> None:
        os.close(self.writer)
        self.writer = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe(silence_s=0.05)) as pipe:
        yield pipe


def listen(inflow: Inflow) -> None:
    while inflow.message((Alive,)):
        pass


def test_what_was_said_goes_out_in_order_and_a_buffer_may_be_used_again() -> None:
    link = Gate()
    buffer = bytearray(CONTENT * 64)
    with closing(BulkWriter(link.write, "there", None)) as writer:
        writer.send(PAGES, memoryview(buffer)[:PAGE_BYTES])
        writer.send(ROUND, memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        writer.send(AskKnown())
        link.open()
        writer.flush()
        assert writer.sent_bytes == len(link.taken)
    assert link.taken == encode(PAGES) + CONTENT + encode(ROUND) + CONTENT * 64 + encode(AskKnown())


def test_it_waits_while_too_much_waits() -> None:
    link = Gate()
    payload = bytes(4 << 20)
    sent: list[int] = []

    def send() -> None:
        for number in range(10):
            writer.send(EndRound(number=number), payload)
            sent.append(number)

    with closing(BulkWriter(link.write, "there", None)) as writer:
        thread = threading.Thread(target=send)
        thread.start()
        thread.join(0.3)
        # One is being written, and of the others the last goes beyond the bound.
        assert len(sent) <= QUEUE_BYTES // len(payload) + 1
        link.open()
        thread.join(20)
        writer.flush()
        assert len(sent) == 10


def test_an_error_of_the_link_surfaces_at_the_next_call_and_nobody_waits() -> None:
    def refuse(_content: bytes | memoryview) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with closing(BulkWriter(refuse, "there", None)) as writer:
        writer.send(AskFacts())
        with pytest.raises(PeerFailed, match="there failed: Broken pipe"):
            writer.flush()
        with pytest.raises(PeerFailed, match="Broken pipe"):
            writer.send(AskFacts())


def test_who_has_nothing_to_say_says_that_it_is_alive() -> None:
    said = threading.Semaphore(0)

    def write(content: bytes | memoryview) -> None:
        assert content == encode(Alive())
        said.release()

    with closing(BulkWriter(write, "there", 0.01)):
        assert said.acquire(timeout=60)
        assert said.acquire(timeout=60)


def test_silence_ends_the_wait_and_alive_goes_on_with_it(pipe: Pipe) -> None:
    def write(content: bytes | memoryview) -> None:
        os.write(pipe.writer, content)

    pipe.inflow.silence_s = 2
    with closing(BulkWriter(write, "here", 0.01)):
        for _ in range(20):
            assert pipe.inflow.message((Alive,)) == Alive()
    pipe.inflow.silence_s = 0.05
    with pytest.raises(PeerFailed, match=r"it said nothing for 0\.05 s"):
        listen(pipe.inflow)


def test_a_payload_comes_whole_in_many_pieces_and_the_next_message_after_it(pipe: Pipe) -> None:
    pipe.inflow.silence_s = 20
    content = encode(PAGES) + CONTENT + encode(ROUND)

    def write() -> None:
        for place in range(0, len(content), 1000):
            os.write(pipe.writer, content[place : place + 1000])

    thread = threading.Thread(target=write)
    thread.start()
    message = pipe.inflow.message((Pages,))
    assert message == PAGES
    assert bytes(pipe.inflow.payload(PAGES, None)) == CONTENT
    assert pipe.inflow.message((EndRound,)) == ROUND
    thread.join()


def test_a_payload_that_ends_early_is_told(pipe: Pipe) -> None:
    os.write(pipe.writer, CONTENT[:100])
    pipe.end()
    with pytest.raises(PeerFailed, match="ended after 100 of 4096 bytes"):
        pipe.inflow.payload(PAGES, None)
    with pytest.raises(PeerFailed, match="ended after 0 of 4096 bytes"):
        pipe.inflow.skip_payload(PAGES)


@given(st.binary(max_size=300), st.sampled_from([PAGES, ROUND]))
def test_any_bytes_are_messages_payloads_or_a_ckpt_error(content: bytes, message: Message) -> None:
    inflow = Inflow(io.BytesIO(encode(message) + content).read, "there")
    try:
        while (said := inflow.message((Pages, EndRound))) is not None:
            if isinstance(said, Pages):
                inflow.payload(said, None)
    except CkptError:
        pass
