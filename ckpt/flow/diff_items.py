"""What came, went or has other values, of things that were paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, TypeVar

from ckpt.flow.matching import Pair
from ckpt.model.changes import Change, FieldChange, ItemChange, Value
from ckpt.units import Pid

Item = TypeVar("Item")


def item_changes(
    pairs: Iterable[Pair[Item]],
    subject: Callable[[Item], str],
    names: tuple[str, ...],
    *,
    pid: Callable[[Item], Pid | None] = lambda _item: None,
    more: Callable[[Item, Item], Iterable[FieldChange]] = lambda _was, _now: (),
) -> Iterator[ItemChange]:
    """What came, went, or has other values in the named fields; `more` gives changes beside those."""
    for was, now in pairs:
        shown = was if now is None else now
        if shown is None:
            continue
        fields = () if was is None or now is None else (*field_changes(was, now, names), *more(was, now))
        if fields or was is None or now is None:
            yield ItemChange(
                change=change_of(was, now), pid=pid(shown), subject=subject(shown), fields=fields
            )


def field_changes(was: Any, now: Any, names: Iterable[str]) -> Iterator[FieldChange]:
    """The named properties that have another value."""
    for name in names:
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            yield FieldChange(name=name, before=_value(before), after=_value(after))


def change_of(was: object, now: object) -> Change:
    """What became of a thing that is not there where it is None."""
    return Change.CAME if was is None else Change.WENT if now is None else Change.CHANGED


def _value(value: Any) -> Value:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Enum):
        return str(value.value)
    assert value is None or isinstance(value, str | int)
    return value
