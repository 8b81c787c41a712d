"""Moments in which a signal of the user's must wait, or do nothing: between a decision and what must follow it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

INTERRUPTIONS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let these signals come when the context is left, and not before."""
    came: list[int] = []
    try:
        with _noted(came):
            yield
    finally:
        for number_that_came in dict.fromkeys(came):
            os.kill(os.getpid(), number_that_came)


@contextmanager
def unheard() -> Iterator[None]:
    """Let these signals have no effect: at the end of the context there is nothing left to be interrupted."""
    with _noted([]):
        yield


@contextmanager
def _noted(came: list[int]) -> Iterator[None]:
    """Note these signals, and do nothing else.

    Handlers of Python run in the main thread alone, whichever thread a signal comes to: another one is never
    interrupted, and a mask would not help the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in INTERRUPTIONS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
