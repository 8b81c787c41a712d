"""SIGINT, SIGTERM and SIGHUP become one Interrupted in the main thread, so that what was begun is undone.

Rules: only the first one raises. None raises while an undo runs: that would take the undo for failed, and
could leave a workload frozen; the operation then ends as it would have ended. A signal that the caller of
ckpt ignores (nohup, a shell's background) stays ignored. One that comes while Python runs a callback, whose exceptions
it swallows (of a weak reference, of the import system, a __del__), comes again a moment later.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from ckpt.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_AGAIN_S: Final = 0.002


class _Again:
    """Sends this process a signal when what runs now has returned; whoever handles it then does."""

    def __init__(self) -> None:
        self._undo: Callable[[], None] | None = None

    def send_soon(self, number: int) -> None:
        """Send it once, in the main thread; nothing if one is on its way already."""
        if self._undo is not None:
            return

        def send(_alarm: int, _frame: FrameType | None) -> None:
            self.cancel()
            os.kill(os.getpid(), number)

        def undo() -> None:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, former)

        former = signal.signal(signal.SIGALRM, send)
        timer = signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        self._undo = undo

    def cancel(self) -> None:
        """Send it no more; safe to repeat."""
        if self._undo is not None:
            self._undo()
            self._undo = None


@contextmanager
def interruptible(operation: str) -> Iterator[None]:
    """Raise Interrupted in this context, once, when one of the signals comes; only in the main thread."""
    raised = 0
    again = _Again()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised and not _is_undoing(frame):
            raised = number
            raise Interrupted(operation=operation)

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        nonlocal raised
        if isinstance(unraisable.exc_value, Interrupted) and raised:
            again.send_soon(raised)
            raised = 0
        else:
            former_hook(unraisable)

    former_hook = sys.unraisablehook
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        sys.unraisablehook = former_hook
        again.cancel()
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
