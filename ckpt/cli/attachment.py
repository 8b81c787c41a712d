"""Stand in for a job that runs elsewhere: relay its output and our signals, and end as it ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from ckpt.cli.relaying import Source
from ckpt.cli.supervising import Conductor, Forwarding, Participant, run, watch
from ckpt.errors import NoSuchTarget, OsRefused
from ckpt.host import launch, linux
from ckpt.host.starting import ERRORS_LOG
from ckpt.units import JobName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.launch import Exit

END_PATIENCE_S: Final = 10.0
"""How long the shim may take to write down the end of a job whose main process is gone."""


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


def attend(
    registry: JobRegistry,
    name: JobName,
    sources: list[Source],
    participants: Sequence[Participant] = (),
) -> int:
    """Forward signals and relay output until the job has ended; gives its exit code, 128 + N for a signal."""
    record = registry.load(name)
    code = serve(registry, record, sources, Forwarding(record), participants).shell_code
    return code or code_of_output(sources)


def code_of_output(sources: Sequence[Source]) -> int:
    """The exit code of a job that ended well, by what became of its output here."""
    return OsRefused.exit_code if any(source.is_lost for source in sources) else 0


def serve(
    registry: JobRegistry,
    record: JobRecord,
    sources: list[Source],
    conductor: Conductor,
    participants: Sequence[Participant] = (),
) -> Exit:
    """Relay output, and let the conductor decide, until the job has ended; gives how.

    Raises:
        NoSuchTarget: nobody wrote it down in time.
        OsRefused: nobody saw it.
        WrongState: it was moved to another host.
    """
    sys.stdout.flush()
    run(record, sources, conductor, participants)
    ended = registry.wait(record.name, END_PATIENCE_S)
    if ended is None:
        raise NoSuchTarget(
            kind="exit code of job", name=record.name, remedy="Its shim did not write it down in time."
        )
    # What a terminal showed last came to the log after the main process's end.
    for source in sources:
        with contextlib.suppress(BrokenPipeError, OsRefused), contextlib.closing(source):
            source.relay()
    return ended


def follow(record: JobRecord, sources: list[Source]) -> None:
    """Relay the sources as they grow, until the job's main process has ended."""
    sys.stdout.flush()
    with ExitStack() as opened:
        poll = select.poll()
        for fd in watch(sources, opened):
            poll.register(fd, select.POLLIN)
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


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0
