"""A source that lies: it says to a real `ckpt agent`, on its pipes, what a real source has said, or what none would say.

Rule: what is recorded goes through SSH alone, so that a pipe can say it again.
"""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass, replace

from harness.command import PROGRAM
from real.counting import Counter
from real.migrating import MigrationBed

from ckpt.codec.messages import (
    MARK,
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Message,
    decode,
    encode,
)
from ckpt.codec.migration_messages import MIGRATION_KINDS, WithPayload
from ckpt.errors import PeerFailed
from ckpt.store.wire_compress import WireCompressor

HELLO = Hello(protocols=(1, 2), version="0", host="elsewhere")
_KINDS: tuple[type[Message], ...] = (
    *(Hello, Alive, AskFacts, AskNeeds, Facts, Findings, Failed),
    *MIGRATION_KINDS.values(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message, and the payload that follows it."""

    message: Message
    payload: bytes = b""

    @property
    def encoded(self) -> bytes:
        return encode(self.message) + self.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """How the agent ended, and what it said."""

    exit_code: int
    answers: tuple[Message, ...]
    errors: str

    @property
    def refusals(self) -> list[str]:
        """The slugs of what it refused."""
        return [each.slug for each in self.answers if isinstance(each, Failed)]


class HostileSource:
    """Speaks to the agent of the bed's target."""

    def __init__(self, bed: MigrationBed) -> None:
        self._bed = bed

    def record(self, counter: Counter, *options: object) -> list[Said]:
        """Migrate the counter to the target, and give what was said there after the greeting; the job is at the target then."""
        bed = self._bed
        tape = bed.ssh.folder / "tape"
        agent = bed.agent(bed.target)
        program = bed.ssh.program(f'tee "{tape}" | {agent} "$@"', "taping")
        words = (counter.job, bed.address_of(bed.target), "--ssh-only", *options, *bed.ssh.options)
        bed.source.ckpt(bed.ckpt, "migrate", *words, "--remote-ckpt", program)
        said = said_in(tape.read_bytes())
        return [_in_plain(each) for each in said if not isinstance(each.message, Hello)]

    def say(self, *said: Said | Message | bytes, timeout_s: float = 60) -> Heard:
        """Start an agent, greet it, say all this at once, and wait for its end."""
        content = b"".join(_encoded(each) for each in (HELLO, *said))
        return self.say_bytes(content, timeout_s=timeout_s)

    def say_bytes(self, content: bytes, *, timeout_s: float = 60) -> Heard:
        """The same, without greeting."""
        host = self._bed.target
        done = subprocess.run(
            host.command_line(PROGRAM, "agent"),
            input=content,
            check=False,
            capture_output=True,
            timeout=timeout_s,
            env=host.environ(self._bed.ckpt),
        )
        return Heard(
            exit_code=done.returncode,
            answers=tuple(each.message for each in said_in(done.stdout.removeprefix(MARK))),
            errors=done.stderr.decode(errors="replace"),
        )


def said_in(content: bytes) -> list[Said]:
    """The messages of one direction, up to where they end or cannot be read."""
    stream = io.BytesIO(content)
    found: list[Said] = []
    while len(head := stream.read(4)) == 4:
        try:
            message = decode(stream.read(int.from_bytes(head, "big")), _KINDS, "the tape")
        except PeerFailed:
            break
        payload = stream.read(message.size_bytes) if isinstance(message, WithPayload) else b""
        found.append(Said(message=message, payload=payload))
    return found


def _in_plain(said: Said) -> Said:
    """The same, not compressed."""
    message = said.message
    if not isinstance(message, WithPayload) or not message.is_compressed:
        return said
    plain = WireCompressor().decompress(said.payload, message.plain_bytes)
    return Said(message=replace(message, size_bytes=message.plain_bytes, is_compressed=False), payload=plain)


def _encoded(said: Said | Message | bytes) -> bytes:
    if isinstance(said, bytes):
        return said
    return said.encoded if isinstance(said, Said) else encode(said)
