"""Word that a group was asked to end, for those of its supervisors that have not begun yet.

    STATE/groups/NAME    the run of the kernel, and when it was asked, by the clock for durations

One supervisor that is asked to end ends the whole group, with a last checkpoint. Where it has only begun to bring the
group back there is none to take, and the next one would bring it back in its place.
Rules:
- Word of another run of the kernel is none, and word that cannot be read neither.
- Nothing is lost with it: it is not made durable.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.process_table import boot_id
from ckpt.units import JobName, Nanoseconds

_BYTES_MAX: Final = 256


def ask(state: str, group: JobName, now: Nanoseconds) -> None:
    """Have those end that were started before `now`.

    Raises:
        OsRefused: it cannot be written.
    """
    path = _path(state, group)
    new = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(new, "w", encoding="ascii") as stream:
            stream.write(f"{boot_id()} {now}\n")
        os.rename(new, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise OsRefused(operation="write", subject=path, reason=error.strerror or str(error)) from error


def is_asked(state: str, group: JobName, since: Nanoseconds) -> bool:
    """Whether the group was asked to end after that instant of the clock for durations."""
    with suppress(OSError, ValueError), open(_path(state, group), encoding="ascii") as stream:
        boot, at = stream.read(_BYTES_MAX).split()
        return boot == boot_id() and int(at) > since
    return False


def forget(state: str, group: JobName) -> None:
    """The group has come to its end; nothing if it was never asked to."""
    with suppress(OSError):
        os.unlink(_path(state, group))


def _path(state: str, group: JobName) -> str:
    return f"{state}/groups/{group}"
