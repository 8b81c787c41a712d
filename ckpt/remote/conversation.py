"""A script on another host that answers in lines of JSON, before there is a ckpt that speaks in messages.

Rules: only what stands after MARK counts: a login may print what it likes. All of it is bounded, and texts are stripped
of control characters: they will be shown on a terminal.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from ckpt.errors import PeerFailed, RemoteError, SetupFailed
from ckpt.remote.setup_process import MARK
from ckpt.remote.ssh import RunningProgram, SshConnection

_SENDING_S: Final = 60.0
_ENDING_S: Final = 2.0
_ANSWER_BYTES_MAX: Final = 1 << 20
_TEXT_MAX: Final = 4000
_LINES_KEPT: Final = 3
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Send = Callable[[Callable[[bytes], None]], None]
"""Gives its bytes, piece by piece, to what it is called with."""


class Conversation:
    """A script on the other host: what it says are lines of JSON after MARK; a context manager."""

    def __init__(self, connection: SshConnection, script: str, words: tuple[str, ...]) -> None:
        self._host = connection.host
        self._running: RunningProgram = connection.run(shlex.join(("sh", "-c", script, "sh", *words)))
        self._rest = b""
        self._left = _ANSWER_BYTES_MAX
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._errors = threading.Thread(target=self._relay, daemon=True, name="stderr of the set-up")
        self._errors.start()
        self.sent_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self._errors.join(_ENDING_S)

    def send(self, send: Send) -> None:
        """Send what `send` gives.

        Raises:
            SetupFailed: the other side ended before, and said why.
            PeerFailed: the connection broke.
        """
        try:
            send(self._write)
        except PeerFailed as error:
            raise self._explained(error) from None

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next thing that it says.

        Raises:
            SetupFailed: it says that it failed, or ended, or says what is no answer.
            PeerFailed: the connection broke.
        """
        for document in self.answers(timeout_s):
            if not isinstance(document, dict):
                break
            if "failed" in document:
                raise SetupFailed(
                    host=self._host,
                    reason=shown(document["failed"]).rstrip("."),
                    remedy=shown(document.get("remedy", "")),
                )
            return document
        raise self._ended()

    def answers(self, timeout_s: float) -> Iterator[Any]:
        """All that it says, to its end, each within the time.

        Raises:
            PeerFailed: the connection broke, or it says too much.
        """
        while line := self._line(timeout_s):
            _, mark, text = line.decode(errors="replace").partition(MARK)
            if mark:
                try:
                    yield json.loads(text)
                except (ValueError, RecursionError):
                    return

    def _line(self, timeout_s: float) -> bytes:
        """The next line with its end; nothing at the end."""
        while b"\n" not in self._rest:
            piece = self._running.read(64 * 1024, timeout_s)
            self._left -= len(piece)
            if self._left < 0:
                raise PeerFailed(
                    host=self._host, reason=f"its set-up says more than {_ANSWER_BYTES_MAX} bytes"
                )
            if not piece:
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"

    def _write(self, content: bytes) -> None:
        self._running.write(content, _SENDING_S)
        self.sent_bytes += len(content)

    def _explained(self, error: PeerFailed) -> RemoteError:
        """Why it takes nothing more: what it said before it ended, or else the error."""
        try:
            while True:
                self.answer(_ENDING_S)
        except SetupFailed as reason:
            return error if self._running.exit_status(_ENDING_S) is None else reason
        except PeerFailed:
            return error

    def _ended(self) -> SetupFailed:
        status = self._running.exit_status(_ENDING_S)
        self._errors.join(_ENDING_S)
        said = f": {' / '.join(self._lines).rstrip('.')}" if self._lines else ""
        if any("sudo" in line for line in self._lines):
            return SetupFailed(
                host=self._host,
                reason=f"the user is not root, and sudo refused{said}",
                remedy="Log in as root (root@HOST), or allow the user in sudoers(5): NOPASSWD.",
            )
        ended = "" if status is None else f" with exit code {status}"
        return SetupFailed(
            host=self._host, reason=f"its set-up ended{ended} and said nothing that is an answer{said}"
        )

    def _relay(self) -> None:
        rest = b""
        while piece := self._running.read_errors(4096):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-_TEXT_MAX:]
            self._keep(*lines)
        self._keep(rest)

    def _keep(self, *lines: bytes) -> None:
        texts = (shown(line.decode(errors="replace").strip()) for line in lines)
        self._lines.extend(text for text in texts if text)


def shown(value: object) -> str:
    """The beginning of a text that came from there, for people."""
    return plain(str(value)[:_TEXT_MAX])


def plain(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
