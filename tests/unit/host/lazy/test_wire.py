"""Frames of the way of the pages come as they were sent, and what is no frame ends it before anything is allocated."""

from __future__ import annotations

import struct

import pytest

from ckpt.errors import PeerFailed
from ckpt.host.lazy.wire import Frame, Kind, packed, read_frame, reason_in, say_failed
from ckpt.units import Pid


class Stream:
    """The bytes of the other side. Fits ckpt.host.lazy.wire.Link."""

    host = "there"

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def read_into(self, into: memoryview) -> None:
        if len(into) > len(self.rest):
            raise PeerFailed(host=self.host, reason="it ended")
        into[:] = self.rest[: len(into)]
        self.rest = self.rest[len(into) :]

    def write(self, content: bytes | memoryview) -> None:
        self.rest += content


def test_frames_come_as_they_were_sent() -> None:
    stream = Stream(b"")
    asked = Frame(kind=Kind.GET, root=Pid(4711), pid=Pid(1), address=1 << 46, count=1024)
    pages = Frame(kind=Kind.PAGES, root=Pid(4711), pid=Pid(1), address=1 << 46, count=2)
    for content in (packed(asked), packed(pages), b"x" * 8192, packed(Frame(kind=Kind.DONE))):
        stream.write(content)
    say_failed(stream.write, "no\x1b[1m more")
    assert read_frame(stream) == (asked, b"")
    assert read_frame(stream) == (pages, b"x" * 8192)
    assert read_frame(stream)[0].kind is Kind.DONE
    assert reason_in(read_frame(stream)[1]) == "no?[1m more"
    assert stream.rest == b""


@pytest.mark.parametrize(
    ("kind", "pid", "address", "count"),
    [
        (Kind.PAGES, 1, 0, 1025),
        (Kind.PAGES, 1, 0, 1 << 60),
        (Kind.GET, 1, 0, 0),
        (Kind.GET, 1, 12, 1),
        (Kind.GET, 0, 0, 1),
        (Kind.FAILED, 0, 0, 1 << 40),
        (99, 1, 0, 1),
    ],
)
def test_what_is_no_frame_ends_it(kind: int, pid: int, address: int, count: int) -> None:
    with pytest.raises(PeerFailed):
        read_frame(Stream(struct.pack("<IIQQQ", 1, kind, pid, address, count)))
