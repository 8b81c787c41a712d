"""What a migration needs of the world besides what a dump and a restore need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ckpt.codec.migration_messages import Accepted, FileKnown, Held, Offer, RoundDone, Running, State
from ckpt.flow.ports import Operation
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.findings import Finding
from ckpt.model.inodes import InodeRecord
from ckpt.model.migration import MigrationId, SourceState, TargetState
from ckpt.model.needs import Needs
from ckpt.model.pages import PageRun
from ckpt.model.shipping import Shipment, ShippedDirectory
from ckpt.model.target import Target
from ckpt.model.workload import Tree
from ckpt.units import ByteCount, Pid


class PageLink(Protocol):
    """A way to what brings the workload its pages on the target."""

    @property
    def host(self) -> str:
        """What the user calls the target."""

    @property
    def silence_s(self) -> float:
        """So long it waits for a word of the other end."""

    def read_into(self, into: memoryview) -> None:
        """Fill this."""

    def write(self, content: bytes | memoryview) -> None:
        """Send all of this."""

    def close(self) -> None:
        """Let go of it."""


class FarSide(Protocol):
    """The target, as its source speaks to it.

    PeerRefused is its answer that it did not do it; another PeerFailed leaves open whether it did.
    """

    @property
    def host(self) -> str:
        """What the user calls it."""

    @property
    def sent_bytes(self) -> ByteCount:
        """What the link has taken so far."""

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        """Everything on that host that speaks against these needs, the gravest first."""

    def page_link(self) -> PageLink:
        """A way for pages that follow the workload, beside this one."""

    def offer(self, offer: Offer) -> Accepted:
        """Offer the workload."""

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Send pages of memory."""

    def end_round(self, number: int) -> RoundDone:
        """Return when all pages of the round are there."""

    def known(self) -> Iterator[tuple[str, tuple[PageRun, ...], bytes]]:
        """The pages that are there already, with the SHA-256 of each."""

    def image_file(self, root: Pid, name: str, mode: int, offset: int, content: memoryview) -> None:
        """Send a piece of an image file of this tree, of another file where `root` is 0."""

    def ask_file(self, number: int, path: str) -> tuple[FileKnown, bytes]:
        """What is there at the path of a file that will be sent, and the digests of its blocks."""

    def file_blocks(
        self, number: int, path: str, file_bytes: int, first_block: int, content: memoryview
    ) -> None:
        """Send blocks of a file."""

    def prepare(
        self,
        checkpoint: Checkpoint,
        absent: tuple[str, ...] = (),
        made: tuple[ShippedDirectory, ...] = (),
    ) -> Held:
        """Have it restored and held; at the paths `absent` no file may be found, and the directories `made` are there."""

    def commit(self) -> Running:
        """Have it let go."""

    def abort(self) -> None:
        """Have it dropped."""

    def forget(self) -> None:
        """Have its record dropped."""

    def state(self) -> State:
        """How far it is there."""


class Round(Protocol):
    """What one round did."""

    @property
    def scanned_pages(self) -> int:
        """How many pages were looked at."""

    @property
    def changed_pages(self) -> int:
        """How many were sent."""


class Memory(Protocol):
    """What was sent of a workload's memory."""

    def round(self, trees: tuple[Tree, ...], far: FarSide) -> Round:
        """Send what was not sent yet, or has changed since; the tasks may do what they like."""

    def estimate(self, trees: tuple[Tree, ...]) -> int:
        """About how many pages a round would send now."""

    def finish(self, root: Pid, images: str, far: FarSide) -> Round:
        """Send what CRIU wrote of a tree and what is not there as it is in CRIU's images."""

    def close(self) -> None:
        """Give up what was kept; safe to repeat."""


class Shipping(Protocol):
    """Files that are sent with the memory."""

    def pass_over(self, target: Target, far: FarSide) -> None:
        """Send what the target lacks, while the workload runs."""

    def last_pass(self, target: Target, far: FarSide) -> Shipment:
        """Send what has changed, while it stands still."""


class PageService(Protocol):
    """Serves memory that stays here when the workload runs on the target."""

    @property
    def sent_bytes(self) -> ByteCount:
        """The bytes of the pages that were sent so far."""

    def serve(self, trees: Iterable[Tree], images: Sequence[str]) -> None:
        """Serve what these image sets, in these directories, lack of the trees, which stand still from now on."""

    def follow(self, let_go: Callable[[], None]) -> None:
        """Call `let_go`, and return when all memory is there; nothing interrupts it.

        Raises:
            PagesLost: that cannot be any more: the copy on the target was ended, unless it had all.
            CkptError: what `let_go` raised.
        """

    def close(self) -> None:
        """End it; safe to repeat."""


class Senders(Protocol):
    """Makes what reads the source."""

    def trees(self, target: Target) -> tuple[Tree, ...]:
        """The trees of a workload that runs."""

    def memory(self, operation: Operation, far: FarSide, *, resumed: bool) -> Memory:
        """What sends memory; what the far side has of it already is not sent again where it is `resumed`."""

    def shipping(self, paths: Sequence[str], *, with_open: bool) -> Shipping:
        """What sends these files, and directories with all files in them; and what the workload comes to write to.

        Raises:
            Usage: one cannot be sent.
        """

    def page_service(self, far: FarSide, tell: Callable[[str], None]) -> PageService:
        """What serves memory that follows the workload; `tell` is told of how far it is.

        Raises:
            PeerFailed: the far side cannot take any.
        """

    def open_files(self, records: Sequence[InodeRecord], lacking: Collection[str]) -> tuple[str, ...]:
        """Which files that a workload holds open must travel; `lacking` are those that the target has not, or others."""

    def own_directory(self, target: Target) -> str:
        """The directory of ckpt's own files of a job, such as its log; "" for what is no job."""

    def size_of(self, path: str) -> ByteCount:
        """The size of a file of the images."""

    def send_file(self, path: str, root: Pid, name: str, far: FarSide) -> ByteCount:
        """Send a file of the images, or another one where `root` is 0; gives its size."""


class SourceRecords(Protocol):
    """What is written down of one migration on its source."""

    @property
    def id(self) -> MigrationId:
        """Its id."""

    @property
    def path(self) -> str:
        """The record's file."""

    @property
    def state(self) -> SourceState:
        """The last that was written down."""

    def begin(self, target: Target) -> None:
        """Write down that it begins, or that a further attempt does; durable."""

    @property
    def attempt(self) -> int:
        """The number of the present attempt, from 1 on."""

    def note(self, state: SourceState) -> None:
        """Write down how far it is; durable when this returns, and as before if this raises."""

    def remove(self) -> None:
        """Forget it."""

    def lock(self) -> AbstractContextManager[None]:
        """Be the only one who works on it.

        Raises:
            Locked: another process does.
        """


class TargetRecords(Protocol):
    """What is written down of one migration on its target."""

    @property
    def path(self) -> str:
        """The record's file."""

    @property
    def state(self) -> TargetState | None:
        """The last that was written down; None for nothing."""

    def note(self, state: TargetState) -> None:
        """Write down how far it is; durable when this returns, and as before if this raises."""
