"""What the two ends of the way of the pages say: questions for pages, pages, and how it ended.

    frame       root (u32) · kind (u32) · pid (u64) · address (u64) · count (u64), little-endian, and then its content
    GET         the keeper wants `count` pages of the process `pid` (as its own tree numbers it) of the tree `root`
    PAGES       these pages, their content behind it
    ALIVE       said by the keeper now and then, and the server answers with the same; at first the server says it with
                `count`, the milliseconds after which either side takes silence for the end
    READY       the keeper listens
    DONE        all pages are there
    FAILED      either side gives up; `count` bytes of text say why

Rule: what is read is bounded before it is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from ckpt.errors import PeerFailed
from ckpt.units import PAGE_BYTES, Pid

PAGES_MAX: Final = 1024
"""In one answer: CRIU asks for at most 4 MiB (criu/uffd.c, MAX_XFER_LEN)."""

REASON_BYTES_MAX: Final = 4096

_FRAME: Final = struct.Struct("<IIQQQ")


class Kind(IntEnum):
    """What a frame says."""

    GET = 1
    PAGES = 2
    ALIVE = 3
    READY = 4
    DONE = 5
    FAILED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame, without its content."""

    kind: Kind
    root: Pid = Pid(0)
    pid: Pid = Pid(0)
    address: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if self.kind in (Kind.GET, Kind.PAGES):
            if not 1 <= self.count <= PAGES_MAX or self.address % PAGE_BYTES or not self.pid:
                raise ValueError(self)
        elif self.kind is Kind.FAILED and self.count > REASON_BYTES_MAX:
            raise ValueError(self)

    @property
    def content_bytes(self) -> int:
        """How much follows."""
        match self.kind:
            case Kind.PAGES:
                return self.count * PAGE_BYTES
            case Kind.FAILED:
                return self.count
            case Kind.GET | Kind.ALIVE | Kind.READY | Kind.DONE:
                return 0


class Link(Protocol):
    """The way to the other end."""

    @property
    def host(self) -> str:
        """What the other end is called."""

    def read_into(self, into: memoryview) -> None:
        """Fill this.

        Raises:
            PeerFailed: it ended, or nothing came for too long.
        """

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this.

        Raises:
            PeerFailed: it broke.
        """


def read_frame(link: Link) -> tuple[Frame, bytearray]:
    """The next frame, and its content.

    Raises:
        PeerFailed: the link broke, or this is no frame.
    """
    head = bytearray(_FRAME.size)
    link.read_into(memoryview(head))
    root, kind, pid, address, count = _FRAME.unpack(head)
    try:
        frame = Frame(kind=Kind(kind), root=Pid(root), pid=Pid(pid), address=address, count=count)
    except ValueError:
        raise PeerFailed(host=link.host, reason=f"it asked for pages with a frame of kind {kind}") from None
    content = bytearray(frame.content_bytes)
    if content:
        link.read_into(memoryview(content))
    return frame, content


def packed(frame: Frame) -> bytes:
    """The frame as bytes, without its content."""
    return _FRAME.pack(frame.root, frame.kind, frame.pid, frame.address, frame.count)


def say_failed(write: Callable[[bytes], None], reason: str) -> None:
    """Tell the other end that this one gives up."""
    text = reason.encode(errors="replace")[:REASON_BYTES_MAX]
    write(packed(Frame(kind=Kind.FAILED, count=len(text))) + text)


def reason_in(content: bytes | bytearray) -> str:
    """Why the other end gave up, for people."""
    return "".join(char if char.isprintable() else "?" for char in content.decode(errors="replace"))
