"""Keep CRIU's log of a failure: it lies in the staging directory, which ends with the operation.

Rule: only the last one of its kind is kept, and no more of it than its beginning, where the first error stands: a
restore that spins writes 18 MB/s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ckpt.errors import CriuError

LOG_BYTES_MAX: Final = 64 << 20


@contextmanager
def keeping_log(place: str) -> Iterator[None]:
    """If the body fails in CRIU, move the log that the error names to the path `place`, and name it there.

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


def _move(log: str, place: str) -> str:
    try:
        if os.stat(log).st_size > LOG_BYTES_MAX:
            os.truncate(log, LOG_BYTES_MAX)
        os.rename(log, place)
    except OSError:  # CRIU failed before it had one
        return ""
    return place
