"""The far side of a migration: its messages, one after another, become calls of a Reception.

Rules: an error of ckpt is an answer. What has no answer may fail too: Stopped is then said once, at once; what follows
is dropped, and each question that goes on with it is refused for the same reason.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ckpt.codec.messages import Alive, Failed
from ckpt.codec.migration_messages import (
    PAYLOAD_BYTES_MAX,
    Abort,
    Aborted,
    AskFile,
    AskKnown,
    AskState,
    Commit,
    EndRound,
    FileBlocks,
    FileDigests,
    Forget,
    Forgotten,
    Held,
    ImageFile,
    KnownEnd,
    KnownPages,
    MigrationMessage,
    Offer,
    Pages,
    Prepare,
    RoundDone,
    Stopped,
    pack_runs,
    unpack_runs,
)
from ckpt.errors import CkptError, Interrupted, PeerFailed
from ckpt.remote.compression import Compressor
from ckpt.remote.inflow import Inflow
from ckpt.remote.reception import Reception
from ckpt.remote.stream import BulkWriter

Content = Pages | ImageFile | FileBlocks
"""What has a payload and no answer."""

Question = Offer | EndRound | AskKnown | AskFile | Prepare | Commit | Abort | Forget | AskState

RECEIVED: Final[Collection[type[Content | Question]]] = (
    *(Pages, ImageFile, FileBlocks),
    *(Offer, EndRound, AskKnown, AskFile, Prepare, Commit, Abort, Forget, AskState),
)
"""The messages of a source."""

_ANEW: Final = (Offer, Commit, Abort, Forget, AskState)
"""What does not go on with what was sent before."""


class Receiving:
    """Answers a source, on one connection."""

    def __init__(
        self, reception: Reception, compressor: Compressor | None, inflow: Inflow, writer: BulkWriter
    ) -> None:
        """Ask `reception`; payloads may be compressed if there is a compressor."""
        self._reception = reception
        self._compressor = compressor
        self._inflow = inflow
        self._writer = writer
        self._refusal: Failed | None = None
        self._is_lost = False

    def take(self, message: Content | Question) -> None:
        """Do what the source says, and answer.

        Raises:
            PeerFailed: the source is gone, or does not say what it must.
        """
        if self._refusal is not None and not isinstance(message, _ANEW):
            if isinstance(message, Content):
                self._inflow.skip_payload(message)
            else:
                self._say(self._refusal)
            return
        self._refusal = None
        try:
            if isinstance(message, Content):
                self._keep(message)
            else:
                self._answer(message)
        except Interrupted:
            raise
        except CkptError as error:
            if self._is_lost:
                raise
            answer = failed(error)
            if isinstance(message, Content):
                self._refusal = answer
                self._say(_stopped(answer))
            else:
                self._say(answer)

    def _keep(self, message: Content) -> None:
        content = self._payload(message)
        match message:
            case Pages(space=space, runs=runs):
                self._reception.pages(space, unpack_runs(runs), content)
            case ImageFile():
                self._reception.image_file(message, content)
            case FileBlocks():
                self._reception.file_blocks(message, content)

    def _answer(self, question: Question) -> None:
        match question:
            case Offer():
                self._say(self._reception.offer(question))
            case EndRound(number=number):
                received = self._reception.end_round(number)
                self._say(RoundDone(number=number, received_bytes=received))
            case AskKnown():
                self._say_known()
            case AskFile():
                self._say_file(question)
            case Prepare():
                self._say(self._reception.prepare(question, self._held))
            case Commit():
                self._say(self._reception.commit(question))
            case Abort():
                self._reception.abort(question)
                self._say(Aborted())
            case Forget():
                self._reception.forget(question)
                self._say(Forgotten())
            case AskState():
                self._say(self._reception.state(question))

    def _say_known(self) -> None:
        for space, runs, digests in self._reception.known():
            size_bytes = len(digests)
            part = KnownPages(
                space=space,
                runs=pack_runs(runs),
                plain_bytes=size_bytes,
                size_bytes=size_bytes,
                is_compressed=False,
            )
            self._say(part, digests)
        self._say(KnownEnd())

    def _say_file(self, ask: AskFile) -> None:
        known, digests = self._reception.ask_file(ask)
        for start in range(0, len(digests), PAYLOAD_BYTES_MAX):
            piece = digests[start : start + PAYLOAD_BYTES_MAX]
            part = FileDigests(
                number=ask.number, plain_bytes=len(piece), size_bytes=len(piece), is_compressed=False
            )
            self._say(part, piece)
        self._say(known)

    def _held(self, held: Held) -> Commit | Abort:
        """Tell the source that it is held, and wait for what it decides."""
        expected: Collection[type[Commit | Abort | Alive]] = (Commit, Abort, Alive)
        self._say(held)
        try:
            while isinstance(said := self._inflow.message(expected), Alive):
                pass
        except PeerFailed:
            self._is_lost = True
            raise
        if said is None:
            self._is_lost = True
            raise PeerFailed(host=self._inflow.peer, reason="it ended before it said what becomes of it")
        return said

    def _payload(self, message: Content) -> memoryview:
        try:
            return self._inflow.payload(message, self._compressor)
        except PeerFailed:
            self._is_lost = True
            raise

    def _say(self, message: MigrationMessage | Failed, payload: bytes = b"") -> None:
        try:
            self._writer.send(message, payload)
        except PeerFailed:
            self._is_lost = True
            raise


def failed(error: CkptError) -> Failed:
    """What the other side is told of an error."""
    return Failed(slug=error.slug, message=error.message, hint=error.advice, exit_code=error.exit_code)


def _stopped(answer: Failed) -> Stopped:
    """The same, said where nothing was asked."""
    return Stopped(slug=answer.slug, message=answer.message, hint=answer.hint, exit_code=answer.exit_code)
