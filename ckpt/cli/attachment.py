"""Stand in for a job that runs elsewhere: relay its output and our signals, and end as it ends.

Rule: waiting is on file descriptors; the job's files are read only when they grew.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final

from ckpt.errors import CkptError, NoSuchTarget
from ckpt.host import launch, linux
from ckpt.host.starting import ERRORS_LOG
from ckpt.units import JobName

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
END_PATIENCE_S: Final = 10.0
"""How long the shim may take to write down the end of a job whose main process is gone."""

_IN_MODIFY: Final = 0x2
_BLOCK_BYTES: Final = 1 << 16


@dataclass(slots=True, kw_only=True)
class Source:
    """A file that a job writes to, how far it was relayed, and the descriptor that it is relayed to."""

    path: str
    offset: int
    target: int

    def relay(self) -> None:
        """Copy what is new."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            while block := os.pread(fd, _BLOCK_BYTES, self.offset):
                self.offset += len(block)
                while block:
                    block = block[os.write(self.target, block) :]
        finally:
            os.close(fd)


def sources_of(registry: JobRegistry, name: JobName, *, from_now: bool) -> list[Source]:
    """The files that the job writes to, from their beginning or from their present end."""
    try:
        stdout = registry.load(name).log
    except NoSuchTarget:
        stdout = f"{registry.directory(name)}/log"
    stderr = f"{registry.directory(name)}/{ERRORS_LOG}"
    return [
        Source(path=path, offset=_size(path) if from_now else 0, target=stream.fileno())
        for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr))
        if path == stdout or os.path.exists(path)
    ]


def attend(registry: JobRegistry, name: JobName, sources: list[Source]) -> int:
    """Forward signals and relay output until the job has ended; gives its exit code, 128 + N for a signal."""
    record = registry.load(name)
    with _forwarding(record):
        follow(record, sources)
        ended = registry.wait(name, END_PATIENCE_S)
    for source in sources:
        source.relay()
    if ended is None:
        raise NoSuchTarget(
            kind="exit code of job", name=name, remedy="Its shim did not write it down in time."
        )
    return ended.shell_code


def follow(record: JobRecord, sources: list[Source]) -> None:
    """Relay the sources as they grow, until the job's main process has ended."""
    sys.stdout.flush()
    with ExitStack() as opened:
        poll = select.poll()
        watches = []
        for source in sources:
            # A file that is not there (removed) cannot grow.
            with contextlib.suppress(OSError):
                watch = linux.inotify_open(source.path, _IN_MODIFY)
                opened.callback(os.close, watch)
                poll.register(watch, select.POLLIN)
                watches.append(watch)
        root = launch.open_pidfd(record.root)
        if root is not None:
            opened.callback(os.close, root)
            poll.register(root, select.POLLIN)
        ended = root is None
        while True:
            # Read after the watch began, and after the end: so nothing falls between.
            for source in sources:
                source.relay()
            if ended:
                return
            for fd, _events in poll.poll():
                if fd == root:
                    ended = True
                else:
                    linux.inotify_drain(fd)


@contextmanager
def _forwarding(record: JobRecord) -> Iterator[None]:
    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(CkptError, OSError):
            launch.send_signal(record.root, number)

    former = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0
