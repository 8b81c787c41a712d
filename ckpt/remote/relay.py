"""The way of the pages that follow a workload: a channel of its own in the connection to the target, and its end there.

Rules: no port is opened on either host; what goes over it is encrypted and authenticated as all of the connection.
Who hears nothing for SILENCE_S gives up. Source: ckpt.host.lazy.wire has what is said.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final

from ckpt.errors import PeerFailed
from ckpt.remote.inflow import SILENCE_S
from ckpt.remote.ssh import RunningProgram

_PIECE_BYTES: Final = 1 << 20


class ProgramLink:
    """The source's end: a program on the target that brings the pages. Fits ckpt.host.lazy.service.ClosingLink."""

    silence_s: Final = SILENCE_S

    def __init__(self, program: RunningProgram, host: str) -> None:
        self._program = program
        self.host: Final = host

    def read_into(self, into: memoryview) -> None:
        """Fill this.

        Raises:
            PeerFailed: it ended, or nothing came for too long.
        """
        done = 0
        while done < len(into):
            piece = self._program.read(min(_PIECE_BYTES, len(into) - done), SILENCE_S)
            if not piece:
                raise PeerFailed(host=self.host, reason=self._last_words() or "it ended")
            into[done : done + len(piece)] = piece
            done += len(piece)

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this.

        Raises:
            PeerFailed: it broke.
        """
        self._program.write(content, SILENCE_S)

    def close(self) -> None:
        """Let go of it: the program finds its input closed."""
        self._program.close()

    def _last_words(self) -> str:
        said = self._program.read_errors(_PIECE_BYTES).decode(errors="replace").strip()
        last = said.splitlines()[-1:]
        return "".join(char if char.isprintable() else "?" for line in last for char in line)


class PipeLink:
    """The target's end: the program's own input and output. Fits ckpt.host.lazy.wire.Link."""

    def __init__(self, reads: int, writes: int) -> None:
        """Take over these descriptors."""
        self.host: Final = "the source"
        self._reads = reads
        self._writes = writes
        os.set_blocking(writes, False)

    def read_into(self, into: memoryview) -> None:
        """Fill this; how long it may take is the caller's affair.

        Raises:
            PeerFailed: it ended.
        """
        done = 0
        while done < len(into):
            try:
                count = os.readv(self._reads, [into[done:]])
            except OSError as error:
                raise PeerFailed(host=self.host, reason=error.strerror or str(error)) from None
            if not count:
                raise PeerFailed(host=self.host, reason="the connection to it has ended")
            done += count

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this.

        Raises:
            PeerFailed: it broke, or took nothing for too long.
        """
        rest = memoryview(content)
        waits = select.poll()
        waits.register(self._writes, select.POLLOUT)
        while rest:
            try:
                with suppress(BlockingIOError):
                    rest = rest[os.write(self._writes, rest) :]
                    continue
                if not waits.poll(SILENCE_S * 1000):
                    raise PeerFailed(host=self.host, reason=f"it took nothing for {SILENCE_S:g} s")
            except OSError as error:
                raise PeerFailed(host=self.host, reason=error.strerror or str(error)) from None
