"""The ckpt on another host: started over SSH, greeted, and asked one thing after another.

Rules: it is silent for at most SILENCE_S, as it says that it is alive while it works; from protocol 2 on we say so too,
all the time. What it writes to its standard error is kept for messages, and shown to the user with -v. Texts from there
are stripped of control characters.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

from ckpt.codec.messages import (
    MIGRATION_PROTOCOL,
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Message,
    common_protocol,
    skip_to_mark,
)
from ckpt.codec.migration_messages import (
    AskDirect,
    Direct,
    Stopped,
    Switched,
    SwitchToDirect,
    WithPayload,
)
from ckpt.errors import PeerFailed, PeerRefused, Unreachable, Usage
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.remote.compression import Compressor
from ckpt.remote.direct import CONNECT_TIMEOUT_S, begin_stream
from ckpt.remote.inflow import SILENCE_S, Inflow
from ckpt.remote.records import NewCipher, RecordWriter
from ckpt.remote.ssh import RunningProgram, SshConnection
from ckpt.remote.stream import ALIVE_EVERY_S, BulkWriter

ANSWER_S: Final = 1800.0
"""So long may one answer take, whoever is alive: a workload waits for some of them, frozen. Any restore takes less."""

_LINES_KEPT: Final = 20
_LINE_BYTES_MAX: Final = 2000
_TEXT_MAX: Final = 16384
"""Of the characters of a text: more than a path has, and less than would flood a terminal."""
_ENDING_S: Final = 2.0
_NOT_FOUND: Final = 127
_NOT_ALLOWED: Final = 126
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Without root's rights sudo must not ask; what it says then comes on standard error.
_START: Final = 'if [ "$(id -u)" = 0 ]; then exec "$0" agent "$@"; fi; exec sudo -n -- "$0" agent "$@"'

Answer = TypeVar("Answer", bound=Message)


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
        self._connection = connection
        self._note = note
        self._stopped: Stopped | None = None
        self._direct: RecordWriter | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._running: RunningProgram = connection.run(shlex.join(("sh", "-c", _START, program)))
        self._errors = threading.Thread(target=self._relay, daemon=True, name="stderr of the other ckpt")
        self._errors.start()
        self._inflow = Inflow(lambda count: self._running.read(count, SILENCE_S), self.host)
        self.writer: Final = BulkWriter(
            lambda content: self._running.write(content, SILENCE_S), self.host, alive_every_s=None
        )
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

    def start_beside(self, *options: str) -> RunningProgram:
        """Start another agent there, with these options, on the same connection; it is not greeted.

        Raises:
            PeerFailed: it cannot be started.
        """
        return self._connection.run(shlex.join(("sh", "-c", _START, self._program, *options)))

    def go_direct(self, migration: str, new_cipher: NewCipher) -> str:
        """Let all that is said from now on for this migration go beside SSH; gives "", or why it goes on over SSH.

        Raises:
            PeerFailed: it does not answer.
        """
        stream: RecordWriter | None = None
        try:
            asked = AskDirect(migration=migration, address=self._connection.address)
            direct = self._ask(asked, Direct)
            connection = self._connection.dial(direct.port, CONNECT_TIMEOUT_S)
            stream = begin_stream(connection, new_cipher(direct.key), migration, self.host, SILENCE_S)
            self._ask(SwitchToDirect(), Switched)
            self.writer.switch(stream.write)
            self._direct, stream = stream, None
        except (PeerRefused, Unreachable) as error:
            return error.reason
        finally:
            if stream is not None:
                stream.close()
        return ""

    def say(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Send this after all that was said before; it may wait here for the link.

        Raises:
            PeerFailed: the link broke.
        """
        try:
            self.writer.send(message, payload)
        except PeerFailed as error:
            raise self._explained(error) from None

    def hear(self, kinds: Collection[type[Answer]]) -> Answer:
        """The next message, of one of these kinds.

        Raises:
            PeerRefused: it answers that it cannot.
            PeerFailed: it does not answer, or not within ANSWER_S.
        """
        expected: Collection[type[Answer | Alive | Stopped | Failed]] = (*kinds, Alive, Stopped, Failed)
        began = time.monotonic()
        while True:
            answer = self._next(expected)
            if isinstance(answer, Alive) and time.monotonic() - began > ANSWER_S:
                raise PeerFailed(
                    host=self.host,
                    reason=f"it says that it is alive, and has not answered for {ANSWER_S:g} s",
                    remedy=f"See what '{self._program} doctor' says there, and whether its disk is slow.",
                )
            if isinstance(answer, Stopped):
                self._stopped = answer
            elif isinstance(answer, Failed):
                raise self._refused(answer)
            elif not isinstance(answer, Alive):
                return _stripped(answer)

    def look(self) -> None:
        """Return at once if it has said nothing but that it is alive.

        Raises:
            PeerRefused: it cannot keep what was sent without an answer, now or ever before.
            PeerFailed: it said anything else.
        """
        while self._inflow.has_some or self._running.has_some:
            said = self._next((Alive, Stopped))
            if isinstance(said, Stopped):
                self._stopped = said
        if self._stopped is not None:
            raise self._refused(self._stopped)

    def hear_payload(self, message: WithPayload, compressor: Compressor) -> memoryview:
        """The plain payload of the message that was heard last; valid until the next one.

        Raises:
            PeerFailed: it is not what was said.
        """
        try:
            return self._inflow.payload(message, compressor)
        except PeerFailed as error:
            raise self._explained(error) from None

    def close(self) -> None:
        """Let go of it; it ends."""
        self.writer.close()
        if self._direct is not None:
            self._direct.close()
        self._running.close()
        self._errors.join(_ENDING_S)

    def _greet(self, own: Hello) -> None:
        try:
            skip_to_mark(self._inflow.read, self.host)
            theirs = self._inflow.message((Hello,))
        except PeerFailed as error:
            raise self._explained(error) from None
        if theirs is None:
            raise self._explained(PeerFailed(host=self.host, reason="it ended before it said who it is"))
        self.protocol = common_protocol(_stripped(theirs), self.host)
        if self.protocol >= MIGRATION_PROTOCOL:
            self.writer.alive_every_s = ALIVE_EVERY_S
        self.say(own)

    def _ask(self, question: Message, kind: type[Answer]) -> Answer:
        self.say(question)
        return self.hear((kind,))

    def _next(self, kinds: Collection[type[Answer]]) -> Answer:
        try:
            said = self._inflow.message(kinds)
        except PeerFailed as error:
            raise self._explained(error) from None
        if said is None:
            raise self._explained(PeerFailed(host=self.host, reason="it ended without an answer"))
        return said

    def _refused(self, answer: Failed | Stopped) -> PeerRefused:
        said = _stripped(answer)
        return PeerRefused(
            host=self.host,
            reason=said.message.rstrip("."),
            remedy=said.hint,
            their_slug=said.slug,
            their_exit_code=said.exit_code,
        )

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
                remedy=f"Install it: ckpt host setup {self.host}; or name the program: --remote-ckpt PATH, or CKPT_REMOTE_CKPT.",
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
    """The value without control characters in its texts, and without their ends where they are too long to be read."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        found = getattr(value, field.name)
        if type(found) is str and (len(found) > _TEXT_MAX or _CONTROL.search(found)):
            changes[field.name] = _plain(found[:_TEXT_MAX])
        if type(found) is tuple and any(type(item) is str for item in found):
            changes[field.name] = tuple(_plain(item[:_TEXT_MAX]) for item in found)
    return dataclasses.replace(value, **changes) if changes else value  # type: ignore[type-var]


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
