"""From the numbers and strings in images to words.

Source: include/uapi/asm-generic/fcntl.h; the flags here are the same on all architectures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ckpt.units import SECOND

_ACCESS: Final = {0: "r", 1: "w", 2: "rw"}
_O_PATH: Final = 0o10000000
_FLAGS: Final = {
    0o2000: "O_APPEND",
    0o4000: "O_NONBLOCK",
    0o10000: "O_DSYNC",
    0o20000: "O_ASYNC",
    0o1000000: "O_NOATIME",
    _O_PATH: "O_PATH",
}
_SIGNALS_MAX: Final = 64


def text(value: str | bytes) -> str:
    """A string of a message; what is not UTF-8 keeps its bytes, as paths do everywhere."""
    # Which of the two it is, where it is not UTF-8, differs between versions of protobuf.
    return value if isinstance(value, str) else os.fsdecode(value)


def path(value: str | bytes) -> str:
    """An absolute path, as the task's root sees it."""
    return "/" + text(value).lstrip("/")


def access(flags: int) -> str:
    """How a file was opened: "r", "w", "rw", "" for neither."""
    return "" if flags & _O_PATH else _ACCESS.get(flags & 3, "")


def flag_names(flags: int) -> tuple[str, ...]:
    """The flags of an open file that matter beside its access."""
    return tuple(name for bit, name in _FLAGS.items() if flags & bit)


def name_of(number: int, names: Mapping[int, str], kind: str) -> str:
    """The name of a number; one that is not known is shown as "KIND NUMBER"."""
    return names.get(number) or f"{kind} {number}"


def signals_of(mask: int) -> tuple[int, ...]:
    """The signals of a mask."""
    return tuple(number for number in range(1, _SIGNALS_MAX + 1) if mask >> (number - 1) & 1)


def seconds(duration_ns: int) -> str:
    """A duration for people: "1.5 s"."""
    return f"{duration_ns / SECOND:.6f}".rstrip("0").rstrip(".") + " s"


def pending_signals(queue: Any) -> Iterator[int]:
    """The numbers of queued signals (signal_queue_entry): siginfo_t begins with its si_signo."""
    for entry in queue.signals:
        if len(entry.siginfo) >= 4:
            yield int.from_bytes(entry.siginfo[:4], "little", signed=True)
