"""Keep CRIU's log of a failure: it lies in the staging directory, which ends with the operation.

Rules: the last ones of each kind are kept, so that a log which an error named is still there when somebody looks. No
more of each than its beginning is kept, where the first error stands: a restore that spins writes 18 MB/s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import CriuError
from ckpt.units import SECOND

LOG_BYTES_MAX: Final = 16 << 20
LOGS_KEPT: Final = 10

DUMP_LOG: Final = "logs/failed-dump"
RESTORE_LOG: Final = "logs/failed-restore"

_DIRECTORY: Final = "logs"
_END: Final = ".log"


@contextmanager
def keeping_log(place: str) -> Iterator[None]:
    """If the body fails in CRIU, move the log that the error names to a path that begins with `place`, and name it there.

    The log must be on the file system of `place`; an error without a log names none.
    """
    try:
        yield
    except CriuError as error:
        if error.log_path:
            kept = _move(error.log_path, place)
            error.remedy = error.remedy.replace(error.log_path, kept)
            error.log_path = kept
        if not error.remedy and not error.log_path:
            error.remedy = "Run 'ckpt doctor': it says whether this CRIU works here."
        raise


def kept_logs(state: str) -> tuple[str, ...]:
    """The paths of the logs that are kept below the state directory, newest first."""
    found: list[tuple[int, str]] = []
    with suppress(OSError), os.scandir(f"{state}/{_DIRECTORY}") as entries:
        found.extend(
            (entry.stat(follow_symlinks=False).st_mtime_ns, entry.path)
            for entry in entries
            if entry.name.endswith(_END) and entry.is_file(follow_symlinks=False)
        )
    return tuple(path for _, path in sorted(found, reverse=True))


def _move(log: str, place: str) -> str:
    seconds, rest = divmod(time.time_ns(), SECOND)
    # The names of one kind sort by time.
    kept = f"{place}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}-{rest:09}{_END}"
    try:
        os.makedirs(os.path.dirname(kept), mode=0o700, exist_ok=True)
        if os.stat(log).st_size > LOG_BYTES_MAX:
            os.truncate(log, LOG_BYTES_MAX)
        os.rename(log, kept)
    except OSError:  # CRIU failed before it had one
        return ""
    _forget_old(place)
    return kept


def _forget_old(place: str) -> None:
    directory, beginning = os.path.split(place)
    names = sorted(
        name for name in os.listdir(directory) if name.startswith(f"{beginning}-") and name.endswith(_END)
    )
    for name in names[:-LOGS_KEPT]:
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
