"""What a restore tells the keeper of its pages, and how: one JSON object a line, each answered with one.

Rule: the restore waits for each answer: a daemon must listen before CRIU asks for it, and the tasks may not take a step
before the keeper answers for them.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from ckpt.errors import RestoreFailed
from ckpt.host.lazy.places import short_path
from ckpt.units import Pid

_LINE_BYTES_MAX: Final = 16384
_ANSWER_S: Final = 60.0
_REMEDY: Final = "Without --lazy all memory is there before it goes on."


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A tree that CRIU is about to restore from `images`; or, with `cgroup`, that all in there runs from now on."""

    root: Pid = Pid(0)
    images: str = ""
    cgroup: str = ""


class Announcer:
    """The restore's side."""

    def __init__(self, place: str) -> None:
        """Find the keeper that listens there.

        Raises:
            RestoreFailed: there is none.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_S)
        try:
            with short_path(place) as path:
                self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise _failed(f"nobody brings the pages ({error.strerror or error})") from error

    def tree(self, root: Pid, images: str) -> None:
        """Have the memory of this tree filled in; CRIU may restore it when this returns.

        Raises:
            RestoreFailed: nobody can.
        """
        self._tell(Announced(root=root, images=images))

    def runs(self, cgroup: str) -> None:
        """From now on the tasks in the cgroup are ended if their memory cannot come.

        Raises:
            RestoreFailed: it is clear already that it cannot.
        """
        self._tell(Announced(cgroup=cgroup))

    def close(self) -> None:
        """Leave the keeper alone, which takes that for the end of a restore whose tasks do not run; safe to repeat."""
        self._socket.close()

    def _tell(self, announced: Announced) -> None:
        try:
            self._socket.sendall(json.dumps(asdict(announced)).encode() + b"\n")
            answer = _line(self._socket)
        except OSError as error:
            raise _failed(error.strerror or str(error)) from error
        if answer is None:
            raise _failed("nobody brings the pages any more")
        if reason := str(json.loads(answer)):
            raise _failed(reason)


def read_announcement(restore: socket.socket) -> Announced | None:
    """What the restore says next; None at its end.

    Raises:
        ValueError: it is nothing that may be said.
        OSError: it is gone.
    """
    line = _line(restore)
    if line is None:
        return None
    said = json.loads(line)
    try:
        return Announced(
            root=Pid(int(said["root"])),
            images=str(said["images"]),
            cgroup=str(said["cgroup"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(line) from error


def say(restore: socket.socket, reason: str) -> None:
    """Answer: "" that it is done, else why it cannot be."""
    with suppress(OSError):
        restore.sendall(json.dumps(reason).encode() + b"\n")


def _line(peer: socket.socket) -> bytes | None:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = peer.recv(_LINE_BYTES_MAX)
        if not piece:
            return None
        line += piece
        if len(line) > _LINE_BYTES_MAX:
            raise ValueError(len(line))
    return bytes(line)


def _failed(reason: str) -> RestoreFailed:
    return RestoreFailed(cause=f"its memory cannot follow: {reason}", remedy=_REMEDY)
