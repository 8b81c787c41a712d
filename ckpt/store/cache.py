"""What was made last, kept: each thing is made once, also when several threads want it at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Recent(Generic[_Key, _Value]):
    """The values that were asked for last, as many as weigh no more than `capacity` together. For several threads."""

    def __init__(self, capacity: int, weigh: Callable[[_Value], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._kept: OrderedDict[_Key, Future[_Value]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """The value of this key, made now if it is not kept; an error of `make` is not kept."""
        with self._guard:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                mine = False
            else:
                found, mine = Future(), True
                self._kept[key] = found
        if mine:
            try:
                made = make()
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it, and so does the caller
                with self._guard:
                    self._kept.pop(key, None)
                found.set_exception(error)
            else:
                found.set_result(made)
                self._make_room(self._weigh(made))
        return found.result()

    def _make_room(self, weight: int) -> None:
        with self._guard:
            self._weight += weight
            while self._weight > self._capacity and len(self._kept) > 1:
                key, oldest = next(iter(self._kept.items()))
                if not oldest.done():
                    return  # it is being made: whoever makes it comes here next
                del self._kept[key]
                self._weight -= self._weigh(oldest.result())
