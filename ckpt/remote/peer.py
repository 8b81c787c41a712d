"""The ckpt on another host: started over SSH, greeted, and asked one thing after another.

Rules: it is silent for at most SILENCE_S, as it says that it is alive while it works. What it writes to its standard
error is kept for messages, and shown to the user with -v. Texts from there are stripped of control characters.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

from ckpt.codec.messages import (
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Message,
    common_protocol,
    encode,
    read_message,
    skip_to_mark,
)
from ckpt.errors import PeerFailed, Usage
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.remote.ssh import RunningProgram, SshConnection

SILENCE_S: Final = 30.0
_LINES_KEPT: Final = 20
_LINE_BYTES_MAX: Final = 2000
_ENDING_S: Final = 2.0
_NOT_FOUND: Final = 127
_NOT_ALLOWED: Final = 126
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Without root's rights sudo must not ask; what it says then comes on standard error.
_START: Final = 'if [ "$(id -u)" = 0 ]; then exec "$0" agent; fi; exec sudo -n -- "$0" agent'

Answer = TypeVar("Answer", Facts, Findings)


class Peer:
    """The ckpt on the other host. Fits the port `Judge`."""

    def __init__(
        self, connection: SshConnection, *, program: str, own: Hello, note: Callable[[str], None]
    ) -> None:
        """Start it and greet it.

        Args:
            connection: The way there.
            program: Its name or path there.
            own: Who asks.
            note: Called with each line of its standard error, from a thread of its own.

        Raises:
            PeerFailed: it did not start, or does not say who it is.
            NoCommonProtocol: it does not speak ours.
        """
        self.host = connection.host
        self._program = program
        self._note = note
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._running: RunningProgram = connection.run(shlex.join(("sh", "-c", _START, program)))
        self._errors = threading.Thread(target=self._relay, daemon=True, name="stderr of the other ckpt")
        self._errors.start()
        try:
            self._greet(own)
        except BaseException:
            self.close()
            raise

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        """Everything on that host that speaks against these needs, the gravest first.

        Raises:
            PeerFailed: it cannot say.
        """
        answer = self._ask(AskNeeds(needs=needs), Findings)
        return tuple(_stripped(finding) for finding in answer.findings)

    def facts(self) -> Facts:
        """What that host is, and what it can do.

        Raises:
            PeerFailed: it cannot say.
        """
        answer = self._ask(AskFacts(), Facts)
        return Facts(host=_stripped(answer.host), checks=tuple(map(_stripped, answer.checks)))

    def close(self) -> None:
        """Let go of it; it ends."""
        self._running.close()
        self._errors.join(_ENDING_S)

    def _greet(self, own: Hello) -> None:
        try:
            skip_to_mark(self._read, self.host)
            theirs = read_message(self._read, (Hello,), self.host)
        except PeerFailed as error:
            raise self._explained(error) from None
        if theirs is None:
            raise self._explained(PeerFailed(host=self.host, reason="it ended before it said who it is"))
        self.protocol = common_protocol(_stripped(theirs), self.host)
        self._running.write(encode(own), SILENCE_S)

    def _ask(self, question: Message, kind: type[Answer]) -> Answer:
        expected: Collection[type[Answer | Alive | Failed]] = (kind, Alive, Failed)
        try:
            self._running.write(encode(question), SILENCE_S)
            while isinstance(answer := read_message(self._read, expected, self.host), Alive):
                pass
        except PeerFailed as error:
            raise self._explained(error) from None
        if answer is None:
            raise self._explained(PeerFailed(host=self.host, reason="it ended without an answer"))
        if isinstance(answer, Failed):
            failed = _stripped(answer)
            raise PeerFailed(host=self.host, reason=failed.message.rstrip("."), remedy=failed.hint)
        return answer

    def _read(self, count: int) -> bytes:
        return self._running.read(count, SILENCE_S)

    def _explained(self, error: PeerFailed) -> PeerFailed:
        """The error with what the other side says of it: its exit code, and the last lines of its standard error."""
        status = self._running.exit_status(_ENDING_S)
        self._errors.join(_ENDING_S)
        lines = list(self._lines)
        said = f": {' / '.join(lines[-3:]).rstrip('.')}" if lines else ""
        if any("sudo" in line for line in lines) and status is not None:
            return PeerFailed(
                host=self.host,
                reason=f"the user is not root, and sudo refused{said}",
                remedy="Log in as root (root@HOST), or allow the user in sudoers(5): NOPASSWD for ckpt agent.",
            )
        if status == _NOT_FOUND:
            return PeerFailed(
                host=self.host,
                reason=f"there is no {self._program}{said}",
                remedy="Install ckpt there, or name the program: --remote-ckpt PATH, or CKPT_REMOTE_CKPT.",
            )
        if status == _NOT_ALLOWED:
            return PeerFailed(
                host=self.host,
                reason=f"{self._program} cannot be executed{said}",
                remedy="Name another program: --remote-ckpt PATH, or CKPT_REMOTE_CKPT.",
            )
        if status is not None:
            said = f" (exit code {status}){said}"
        remedy = error.remedy or f"See what '{self._program} doctor' says there."
        if status == Usage.exit_code:
            remedy = "Install the same version of ckpt on both hosts: that one may be too old."
        return PeerFailed(host=self.host, reason=f"{error.reason}{said}", remedy=remedy)

    def _relay(self) -> None:
        rest = b""
        while piece := self._running.read_errors(4096):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._keep(line)
            if len(rest) > _LINE_BYTES_MAX:
                self._keep(rest)
                rest = b""
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = _plain(line[:_LINE_BYTES_MAX].decode(errors="replace").strip())
        if text:
            self._lines.append(text)
            self._note(f"{self.host}: {text}")


Value = TypeVar("Value")


def _stripped(value: Value) -> Value:
    """The value without control characters in its texts: they will be shown on a terminal."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        text = getattr(value, field.name)
        if type(text) is str and _CONTROL.search(text):
            changes[field.name] = _plain(text)
    return dataclasses.replace(value, **changes) if changes else value  # type: ignore[type-var]


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
