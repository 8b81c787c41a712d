"""A target of a migration that keeps what it gets in memory, and fails where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

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
from ckpt.errors import NoSpace, RestoreFailed
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, ByteCount, Nanoseconds, Pid

HELD = Held(
    pid=Pid(7), pids=(Pid(7), Pid(8)), cgroup="/ckpt/web", restore_ns=Nanoseconds(5), warnings=("tight\x1b",)
)
RUNNING = Running(pid=Pid(7), pids=(Pid(7), Pid(8)), cgroup="/ckpt/web", warnings=())


class MemoryReception:
    """Fits Reception."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at = fail_at
        self.journal: list[str] = []
        self.memory: dict[tuple[str, int], bytes] = {}
        self.files: dict[tuple[int, str], bytearray] = {}
        self.blocks: list[tuple[FileBlocks, bytes]] = []
        self._round_bytes = 0

    def offer(self, offer: Offer) -> Accepted:
        self._note("offer")
        return Accepted(has_pages=bool(self.memory))

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        self._note("pages")
        numbers = [page for first, count in runs for page in range(first, first + count)]
        for place, page in enumerate(numbers):
            self.memory[space, page] = bytes(content[place * PAGE_BYTES : (place + 1) * PAGE_BYTES])
        self._round_bytes += len(content)

    def end_round(self, number: int) -> ByteCount:
        self._note(f"end_round {number}")
        received, self._round_bytes = ByteCount(self._round_bytes), 0
        return received

    def known(self) -> Iterator[tuple[str, Sequence[PageRun], bytes]]:
        self._note("known")
        for (space, page), content in sorted(self.memory.items()):
            yield space, [PageRun(page, 1)], sha256(content).digest()

    def image_file(self, file: ImageFile, content: memoryview) -> None:
        self._note("image_file")
        whole = self.files.setdefault((file.root, file.name), bytearray())
        whole[file.offset : file.offset + len(content)] = content

    def ask_file(self, ask: AskFile) -> tuple[FileKnown, bytes]:
        self._note("ask_file")
        digests = b"".join(sha256(bytes([block % 256])).digest() for block in range(200_000))
        return FileKnown(number=ask.number, is_there=True, file_bytes=200_000 << 16), digests

    def file_blocks(self, blocks: FileBlocks, content: memoryview) -> None:
        self._note("file_blocks")
        self.blocks.append((blocks, bytes(content)))

    def prepare(self, prepare: Prepare, held: Callable[[Held], Commit | Abort]) -> Running | Aborted:
        self._note("prepare")
        try:
            decision = held(HELD)
        finally:
            self._note("decided")
        self._note(type(decision).__name__)
        return RUNNING if isinstance(decision, Commit) else Aborted()

    def commit(self, commit: Commit) -> Running:
        self._note(f"commit {commit.migration}")
        return RUNNING

    def abort(self, abort: Abort) -> None:
        self._note("abort")

    def forget(self, forget: Forget) -> None:
        self._note("forget")

    def state(self, ask: AskState) -> State:
        self._note("state")
        return State(migration=ask.migration, state="held", job="web", pid=Pid(7))

    def _note(self, what: str) -> None:
        self.journal.append(what)
        if what != self.fail_at:
            return
        if what == "prepare":
            raise RestoreFailed(cause="no such pid")
        raise NoSpace(place="/there", available_bytes=1, needed_bytes=2)
