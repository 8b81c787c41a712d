"""The page that the supervisor's two processes share: which call is being answered.

The kernel delivers a notification once. It writes it here; so when the process that took it dies, the other one
has it still, and the task gets its answer.
Rule: `clear` only after the answer was sent: what is answered twice is answered once, what is lost never.
Source: seccomp_unotify(2); mmap(2), MAP_SHARED with MAP_ANONYMOUS.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Final, NamedTuple

from ckpt.host.virtual.kernel import NOTIFICATION, receive

_PAGE_BYTES: Final = 4096
_NUMBER: Final = struct.Struct("<Q")
_LISTENER: Final = struct.Struct("<q")
_GENERATION_AT, _ANSWERED_AT, _LISTENER_AT, _NOTIFICATION_AT = 0, 8, 16, 24
_NOTIFICATION: Final = slice(_NOTIFICATION_AT, _NOTIFICATION_AT + NOTIFICATION.size)
_NOTHING: Final = bytes(NOTIFICATION.size)
_ID_BYTES: Final = 8


class Progress(NamedTuple):
    """How far the service is: if it is equal after a while, and calls wait, it stands still."""

    answered: int
    in_call: int


class Slot:
    """The shared page; forks of the process that made it see the same."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page)) + _NOTIFICATION_AT
        self._answered = 0

    @property
    def generation(self) -> int:
        """Which of the second processes may take over."""
        return int(_NUMBER.unpack_from(self._page, _GENERATION_AT)[0])

    @generation.setter
    def generation(self, value: int) -> None:
        _NUMBER.pack_into(self._page, _GENERATION_AT, value)

    def receive(self, listener: int) -> bytes | None:
        """Take the next call of a listener; None if there is none after all."""
        _LISTENER.pack_into(self._page, _LISTENER_AT, listener)
        return self._page[_NOTIFICATION] if receive(listener, self._address) else None

    def clear(self) -> None:
        """The call has been answered."""
        self._page[_NOTIFICATION] = _NOTHING
        self._answered += 1
        _NUMBER.pack_into(self._page, _ANSWERED_AT, self._answered)

    def left(self) -> tuple[int, bytes] | None:
        """The listener and the call that the process before left unanswered."""
        notification = self._page[_NOTIFICATION]
        (listener,) = _LISTENER.unpack_from(self._page, _LISTENER_AT)
        return None if notification[:_ID_BYTES] == bytes(_ID_BYTES) else (listener, notification)

    def progress(self) -> Progress:
        """Where the service stands."""
        (answered,) = _NUMBER.unpack_from(self._page, _ANSWERED_AT)
        (in_call,) = _NUMBER.unpack_from(self._page, _NOTIFICATION_AT)
        return Progress(answered=answered, in_call=in_call)
