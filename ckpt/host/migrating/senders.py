"""What reads the source of a migration: its memory, its files, its images. Fits the port `Senders`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from ckpt.codec.migration_messages import FileKnown
from ckpt.errors import OsRefused
from ckpt.host import sparse_copy
from ckpt.host.inspection import snapshot
from ckpt.host.jobs import JobRegistry
from ckpt.host.lazy.service import ClosingLink, PageService
from ckpt.host.operations import JournaledOperation
from ckpt.host.precopy.live import LiveMemory, RoundCount
from ckpt.host.shipping.blocks import FileDigests
from ckpt.host.shipping.open_files import open_files, written_now
from ckpt.host.shipping.shipped import ShippedFiles
from ckpt.model.inodes import InodeRecord
from ckpt.model.pages import PageRun
from ckpt.model.shipping import Shipment
from ckpt.model.target import Target
from ckpt.model.workload import Tree
from ckpt.units import ByteCount, Pid

_PIECE_BYTES: Final = 4 << 20
_DIGEST_BYTES: Final = 32


class Far(Protocol):
    """What of the far side is needed here."""

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Send pages of memory."""

    def known(self) -> Iterable[tuple[str, tuple[PageRun, ...], bytes]]:
        """The pages that are there already, with the SHA-256 of each."""

    def page_link(self) -> ClosingLink:
        """A way for pages that follow the workload."""

    def image_file(self, root: Pid, name: str, mode: int, offset: int, content: memoryview) -> None:
        """Send a piece of an image file."""

    def ask_file(self, number: int, path: str) -> tuple[FileKnown, bytes]:
        """What is there at the path of a file that will be sent, and the digests of its blocks."""

    def file_blocks(
        self, number: int, path: str, file_bytes: int, first_block: int, content: memoryview
    ) -> None:
        """Send blocks of a file."""


class HostSenders:
    """Fits the port `Senders`."""

    def __init__(self, state: str) -> None:
        """With the state directory `state`."""
        self._state = state
        self._jobs = JobRegistry(state)

    def trees(self, target: Target) -> tuple[Tree, ...]:
        """The trees of a workload that runs."""
        return snapshot.take(snapshot.members_of(target), target.cgroup, None).trees

    def memory(self, operation: object, far: Far, *, resumed: bool) -> LiveSender:
        """What sends memory; what the far side has of it already is not sent again where it is `resumed`."""
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        known = _Known(far) if resumed else None
        return LiveSender(LiveMemory(operation.directory("spool"), known=known))

    def shipping(self, paths: Sequence[str], *, with_open: bool) -> FileSender:
        """What sends these files, and directories with all files in them; and what the workload comes to write to.

        Raises:
            Usage: one cannot be sent.
        """
        # The log of a job lies in the state directory, and is no file of ckpt's own working.
        return FileSender(ShippedFiles(paths, f"{self._state}/operations"), with_open=with_open)

    def page_service(self, far: Far, tell: Callable[[str], None]) -> PageService:
        """What serves memory that follows the workload; `tell` is told of how far it is.

        Raises:
            PeerFailed: the far side cannot take any.
        """
        return PageService(far.page_link(), tell)

    def open_files(self, records: Sequence[InodeRecord], lacking: Collection[str]) -> tuple[str, ...]:
        """Which files that a workload holds open must travel; `lacking` are those that the target has not, or others."""
        return open_files(records, lacking)

    def own_directory(self, target: Target) -> str:
        """The directory of ckpt's own files of a job, such as its log; "" for what is no job."""
        return self._jobs.directory(target.job) if target.job else ""

    def size_of(self, path: str) -> ByteCount:
        """The size of a file of the images."""
        return ByteCount(os.path.getsize(path))

    def send_file(self, path: str, root: Pid, name: str, far: Far) -> ByteCount:
        """Send a file of the images, or another one where `root` is 0; gives its size.

        Raises:
            OsRefused: it cannot be read.
        """
        view = memoryview(bytearray(_PIECE_BYTES))
        try:
            with open(path, "rb", buffering=0) as stream:
                fd = stream.fileno()
                size = os.fstat(fd).st_size
                for at, length in _pieces(fd, size):
                    count = os.preadv(fd, [view[:length]], at)
                    far.image_file(root, name, 0o600, at, view[:count])
        except OSError as error:
            raise OsRefused(operation="read", subject=path, reason=error.strerror or str(error)) from error
        return ByteCount(size)


def _pieces(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where to read how much of it: all but the holes. The one at 0 begins it, the last says how long it is."""
    end = 0
    for start, stop in sparse_copy.data_in(file, size):
        if start and not end:
            yield 0, 0
        for at in range(start, stop, _PIECE_BYTES):
            yield at, min(_PIECE_BYTES, stop - at)
        end = stop
    if not end:
        yield 0, 0
    if end < size:
        yield size - 1, 1


@dataclass(frozen=True, slots=True)
class LiveSender:
    """Fits the port `Memory`."""

    memory: LiveMemory

    def round(self, trees: tuple[Tree, ...], far: Far) -> RoundCount:
        """Send what was not sent yet, or has changed since; the tasks may do what they like."""
        return self.memory.round(trees, far)

    def estimate(self, trees: tuple[Tree, ...]) -> int:
        """About how many pages a round would send now."""
        return self.memory.estimate(trees)

    def finish(self, root: Pid, images: str, far: Far) -> RoundCount:
        """Send what CRIU wrote of a tree and what is not there as it is in CRIU's images."""
        return self.memory.finish(root, images, far)

    def close(self) -> None:
        """Give up what was kept; safe to repeat."""
        self.memory.close()


@dataclass(frozen=True, slots=True)
class FileSender:
    """Fits the port `Shipping`."""

    files: ShippedFiles
    with_open: bool

    def pass_over(self, target: Target, far: Far) -> None:
        """Send what the target lacks, while the workload runs."""
        pids = snapshot.members_of(target)
        self._add_open(pids)
        self.files.first_pass(_Blocks(far), _asking(far), pids)

    def last_pass(self, target: Target, far: Far) -> Shipment:
        """Send what has changed, while it stands still."""
        self._add_open(snapshot.members_of(target))
        return self.files.last_pass(_Blocks(far))

    def _add_open(self, pids: Collection[Pid]) -> None:
        if self.with_open:
            self.files.add(written_now(pids))


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where blocks go. Fits ckpt.host.shipping.shipped.BlockSink."""

    far: Far

    def blocks(self, number: int, path: str, size: int, first_block: int, content: memoryview) -> None:
        self.far.file_blocks(number, path, size, first_block, content)


def _asking(far: Far) -> Callable[[Sequence[tuple[int, str]]], Iterable[FileDigests | None]]:
    def ask(files: Sequence[tuple[int, str]]) -> Iterable[FileDigests | None]:
        for number, path in files:
            known, digests = far.ask_file(number, path)
            yield FileDigests(known.file_bytes, digests) if known.is_there else None

    return ask


class _Known:
    """What the target has already, asked for at once. Fits ckpt.host.precopy.known.KnownPages."""

    def __init__(self, far: Far) -> None:
        pages: dict[str, list[np.ndarray]] = {}
        digests: dict[str, list[bytes]] = {}
        for space, runs, content in far.known():
            pages.setdefault(space, []).extend(
                np.arange(run.page, run.page + run.count, dtype=np.int64) for run in runs
            )
            digests.setdefault(space, []).append(content)
        self._spaces = {
            space: _sorted(np.concatenate(found), b"".join(digests[space])) for space, found in pages.items()
        }

    def digests(self, space: str) -> tuple[np.ndarray, bytes] | None:
        """The pages of a space, ascending, and the SHA-256 of each in this order; None for none."""
        return self._spaces.get(space)


def _sorted(pages: np.ndarray, digests: bytes) -> tuple[np.ndarray, bytes]:
    order = np.argsort(pages, kind="stable")
    rows = np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)
    return pages[order], rows[order].tobytes()
