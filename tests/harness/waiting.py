"""Waiting for a condition, bounded in time, with a reason when it does not come.

What oversleeps by much was kept from running, with what it waits for: that does not count (pauses.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from harness.pauses import PAUSE_S

T = TypeVar("T")

_POLL_S = 0.005


def await_condition(condition: Callable[[], T], what: str | Callable[[], str], *, timeout_s: float = 60) -> T:
    """Ask again and again until the answer is true, and return it.

    Args:
        condition: What is asked.
        what: What is waited for, in words; or how to find these words when it did not come.
        timeout_s: How long, in seconds.

    Raises:
        AssertionError: it did not come in time.
    """
    end = time.monotonic() + timeout_s
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > end:
            words = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {timeout_s:g} s in vain: {words}")
        asleep = time.monotonic()
        time.sleep(_POLL_S)
        slept_s = time.monotonic() - asleep
        end += slept_s if slept_s > PAUSE_S else 0
