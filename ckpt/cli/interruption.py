"""SIGINT, SIGTERM and SIGHUP become one Interrupted in the main thread, so that what was begun is undone.

Rules: only the first one raises. None raises while an undo runs: that would take the undo for failed, and
could leave a workload frozen; the operation then ends as it would have ended. A signal that the caller of
ckpt ignores (nohup, a shell's background) stays ignored.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from ckpt.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible(operation: str) -> Iterator[None]:
    """Raise Interrupted in this context, once, when one of the signals comes; only in the main thread."""
    raised = False

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised and not _is_undoing(frame):
            raised = True
            raise Interrupted(operation=operation)

    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _is_undoing(frame: FrameType | None) -> bool:
    """Whether the interrupted code is part of an undo."""
    # Imported late: without a flow there is no undo, and --help shall be quick.
    from ckpt.flow.undo import Undo  # noqa: PLC0415

    undoing = Undo.__exit__.__code__
    while frame is not None:
        if frame.f_code is undoing:
            return True
        frame = frame.f_back
    return False
