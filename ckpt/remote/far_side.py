"""The target of a migration as its source sees it: each of its acts is a message, and most wait for the answer.

Rules: PeerRefused is an answer: it was not done there. Any other PeerFailed leaves open what was done. What cannot be
kept there is refused at one of the next calls, and at all after it but commit(), abort(), forget() and state(). For one
thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from ckpt.codec.messages import MIGRATION_PROTOCOL
from ckpt.codec.migration_messages import (
    DIGEST_BYTES,
    FILE_DIGESTS_MAX,
    Abort,
    Aborted,
    Accepted,
    AskFile,
    AskKnown,
    AskState,
    Commit,
    EndRound,
    FileBlocks,
    FileDigests,
    FileKnown,
    Forget,
    Forgotten,
    Held,
    ImageFile,
    KnownEnd,
    KnownPages,
    Offer,
    Pages,
    Prepare,
    RoundDone,
    Running,
    State,
    pack_runs,
    unpack_runs,
)
from ckpt.errors import NoCommonProtocol, PeerFailed
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.model.pages import PageRun
from ckpt.model.shipping import ShippedDirectory
from ckpt.remote.compression import Compressor, Shortening
from ckpt.remote.peer import Peer
from ckpt.remote.records import NewCipher
from ckpt.remote.relay import ProgramLink
from ckpt.units import ByteCount, Pid

_LATE_ANSWERS_MAX: Final = 16
_KNOWN_PAGES_LEAST: Final = 1 << 20


class FarSide:
    """The ckpt on the target."""

    def __init__(self, peer: Peer, compressor: Compressor, migration: str) -> None:
        """Speak of this migration; payloads are compressed where that pays.

        Raises:
            NoCommonProtocol: the other ckpt cannot migrate.
        """
        if peer.protocol < MIGRATION_PROTOCOL:
            raise NoCommonProtocol(
                host=peer.host,
                reason=f"it speaks protocol {peer.protocol}, and a migration needs {MIGRATION_PROTOCOL}",
                remedy="Install the same version of ckpt on both hosts.",
            )
        self.host: Final = peer.host
        self._peer = peer
        self._compressor = compressor
        self._migration = migration
        self._shortening = Shortening(compressor, peer.writer.meter)

    @property
    def sent_bytes(self) -> ByteCount:
        """What the link has taken so far, as it was sent."""
        return ByteCount(self._peer.writer.sent_bytes)

    @property
    def bytes_per_s(self) -> float | None:
        """What the link takes a second; None while it never was what held things up."""
        return self._peer.writer.meter.bytes_per_s

    def go_direct(self, new_cipher: NewCipher) -> str:
        """Let all that is sent from now on go beside SSH; gives "", or why it goes on over SSH.

        Raises:
            PeerFailed: see the module.
        """
        return self._peer.go_direct(self._migration, new_cipher)

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        """Everything on that host that speaks against these needs, the gravest first.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        return self._peer.judge(needs)

    def page_link(self) -> ProgramLink:
        """A way for pages that follow the workload, beside this one: what brings them there is started.

        Raises:
            PeerFailed: it cannot be.
        """
        return ProgramLink(self._peer.start_beside("--pages", self._migration), self.host)

    def offer(self, offer: Offer) -> Accepted:
        """Offer the workload.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.say(offer)
        return self._peer.hear((Accepted,))

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Send pages, at most PAYLOAD_BYTES_MAX; the buffer may be used again at once.

        Raises:
            PeerRefused, PeerFailed: at this or at something sent before.
        """
        packed, is_compressed = self._shorten(content)
        message = Pages(
            space=space,
            runs=pack_runs(runs),
            plain_bytes=len(content),
            size_bytes=len(packed),
            is_compressed=is_compressed,
        )
        self._peer.say(message, packed)

    def end_round(self, number: int) -> RoundDone:
        """All pages of the round were sent; returns when they are there.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.look()
        self._peer.say(EndRound(number=number))
        return self._peer.hear((RoundDone,))

    def known(self) -> Iterator[tuple[str, tuple[PageRun, ...], bytes]]:
        """The pages that are there already: runs of a space, and the SHA-256 of each. Must be read to its end.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.look()
        self._peer.say(AskKnown())
        left = _known_pages_max()
        while isinstance(part := self._peer.hear((KnownPages, KnownEnd)), KnownPages):
            left -= part.plain_bytes // DIGEST_BYTES
            if left < 0:
                raise self._nonsense(
                    f"more than {_known_pages_max()} pages, and no workload here has so many"
                )
            content = self._peer.hear_payload(part, self._compressor)
            yield part.space, unpack_runs(part.runs), bytes(content)

    def image_file(self, root: Pid, name: str, mode: int, offset: int, content: memoryview) -> None:
        """Send a piece of an image file of this tree, of a carried file where `root` is 0.

        Raises:
            PeerRefused, PeerFailed: at this or at something sent before.
        """
        packed, is_compressed = self._shorten(content)
        message = ImageFile(
            root=root,
            name=name,
            mode=mode,
            offset=offset,
            plain_bytes=len(content),
            size_bytes=len(packed),
            is_compressed=is_compressed,
        )
        self._peer.say(message, packed)

    def ask_file(self, number: int, path: str) -> tuple[FileKnown, bytes]:
        """What is there at the path of a file that will be shipped, and the digests of its blocks.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.look()
        self._peer.say(AskFile(number=number, path=path))
        digests = bytearray()
        kinds: Collection[type[FileDigests | FileKnown]] = (FileDigests, FileKnown)
        while isinstance(part := self._peer.hear(kinds), FileDigests):
            if len(digests) + part.plain_bytes > FILE_DIGESTS_MAX * DIGEST_BYTES:
                raise self._nonsense(f"more than {FILE_DIGESTS_MAX} digests of {path}")
            digests += self._peer.hear_payload(part, self._compressor)
        return part, bytes(digests)

    def file_blocks(
        self, number: int, path: str, file_bytes: int, first_block: int, content: memoryview
    ) -> None:
        """Send blocks of a shipped file.

        Raises:
            PeerRefused, PeerFailed: at this or at something sent before.
        """
        packed, is_compressed = self._shorten(content)
        message = FileBlocks(
            number=number,
            path=path,
            file_bytes=file_bytes,
            first_block=first_block,
            plain_bytes=len(content),
            size_bytes=len(packed),
            is_compressed=is_compressed,
        )
        self._peer.say(message, packed)

    def prepare(
        self,
        checkpoint: Checkpoint,
        absent: tuple[str, ...] = (),
        made: tuple[ShippedDirectory, ...] = (),
    ) -> Held:
        """Have it restored and held; at the paths `absent` no file may be found, and the directories `made` are there.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.look()
        self._peer.say(Prepare(checkpoint=checkpoint, absent=absent, made=made))
        return self._peer.hear((Held,))

    def commit(self) -> Running:
        """Have it let go.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.say(Commit(migration=self._migration))
        return self._peer.hear((Running,))

    def abort(self) -> None:
        """Have it dropped.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.say(Abort(migration=self._migration))
        # What was asked before an interruption is answered first.
        kinds: Collection[type[Aborted | Accepted | RoundDone | Held]] = (Aborted, Accepted, RoundDone, Held)
        for _ in range(_LATE_ANSWERS_MAX):
            if isinstance(self._peer.hear(kinds), Aborted):
                return
        raise self._nonsense(f"{_LATE_ANSWERS_MAX} answers, and none to that")

    def forget(self) -> None:
        """Have its record dropped.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.say(Forget(migration=self._migration))
        self._peer.hear((Forgotten,))

    def state(self) -> State:
        """How far it is there.

        Raises:
            PeerRefused, PeerFailed: see the module.
        """
        self._peer.say(AskState(migration=self._migration))
        state = self._peer.hear((State,))
        if state.migration != self._migration:
            raise self._nonsense(f"the state of migration {state.migration}")
        return state

    def _nonsense(self, what: str) -> PeerFailed:
        return PeerFailed(host=self.host, reason=f"it answers with nonsense: {what}")

    def _shorten(self, content: memoryview) -> tuple[bytes | memoryview, bool]:
        """What to send for this content, if the other side still takes any."""
        self._peer.look()
        return self._shortening.shorten(content)


def _known_pages_max() -> int:
    """How many pages the other side may know: it costs memory here, where the workload runs."""
    return max(_KNOWN_PAGES_LEAST, 2 * os.sysconf("SC_PHYS_PAGES"))
