"""Who takes a workload in on the far side: what the messages of a migration ask for.

Rules: one migration at a time on a connection. An error of ckpt is told to the source; the content that a method gets
is valid until it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ckpt.codec.migration_messages import (
    Abort,
    Aborted,
    Accepted,
    AskFile,
    AskState,
    Commit,
    FileBlocks,
    FileKnown,
    Forget,
    Held,
    ImageFile,
    Offer,
    Prepare,
    Running,
    State,
)
from ckpt.model.pages import PageRun
from ckpt.units import ByteCount


class Reception(Protocol):
    """The target of a migration."""

    def offer(self, offer: Offer) -> Accepted:
        """Take it, or raise; nothing is restored yet."""

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Keep these pages."""

    def end_round(self, number: int) -> ByteCount:
        """All pages of the round came; gives how many plain bytes that were."""

    def known(self) -> Iterator[tuple[str, Sequence[PageRun], bytes]]:
        """The SHA-256 of each page that is here, for at most KNOWN_PAGES_MAX pages at once."""

    def image_file(self, file: ImageFile, content: memoryview) -> None:
        """Keep this piece of an image file."""

    def ask_file(self, ask: AskFile) -> tuple[FileKnown, bytes]:
        """What is at this path: whether it is there, and the digests of its blocks."""

    def file_blocks(self, blocks: FileBlocks, content: memoryview) -> None:
        """Keep these blocks of a shipped file."""

    def prepare(self, prepare: Prepare, held: Callable[[Held], Commit | Abort]) -> Running | Aborted:
        """Restore and hold it, tell that with `held`, and do what that answers.

        `held` raises PeerFailed if the source is gone: it is for the source to say, later, what becomes of it.
        """

    def commit(self, commit: Commit) -> Running:
        """Let go of one that was held on an earlier connection, or say that it runs."""

    def abort(self, abort: Abort) -> None:
        """Drop all of it; there may be nothing."""

    def forget(self, forget: Forget) -> None:
        """Drop the record and the images; there may be none."""

    def state(self, ask: AskState) -> State:
        """How far it is."""
