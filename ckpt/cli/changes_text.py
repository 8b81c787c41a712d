"""What changed between two checkpoints, as text for people and as JSON (docs/show.md has its shape).

A line begins with "+" for what came, "-" for what went, "~" for what changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ckpt.cli.contents_text import span
from ckpt.cli.documents import plain, rfc3339
from ckpt.cli.output import on_one_line
from ckpt.model.changes import (
    AreaChange,
    Change,
    CheckpointChanges,
    FieldChange,
    ItemChange,
    PageCounts,
    SpaceChange,
    Value,
)
from ckpt.units import PAGE_BYTES, Nanoseconds, human_bytes

_MARKS: Final = {Change.CAME: "+", Change.WENT: "-", Change.CHANGED: "~"}
_DIGEST_DIGITS: Final = 12
_OCTAL: Final = frozenset(("mode", "umask"))
_ADDRESSES: Final = frozenset(("start", "end"))
_UNCHANGED: Final = "Nothing else changed."


def changes_document(changes: CheckpointChanges) -> dict[str, Any]:
    """What `ckpt diff` answers."""
    return {
        "before": changes.before,
        "after": changes.after,
        "passed": plain(changes.passed),
        "pages": _pages_document(changes.pages),
        "tasks": plain(changes.tasks),
        "descriptors": plain(changes.descriptors),
        "memory": [_space_document(space) for space in changes.memory],
        "files": plain(changes.files),
        "sockets": plain(changes.sockets),
        "pipes": plain(changes.pipes),
        "limits": plain(changes.limits),
        "warnings": list(changes.warnings),
    }


def changes_text(changes: CheckpointChanges) -> str:
    """The same for people."""
    passed = changes.passed
    sections = (
        ("Tasks", _items(changes.tasks)),
        ("Descriptors", _items(changes.descriptors)),
        ("Memory", "\n".join(filter(None, map(_space, changes.memory)))),
        ("Files", _items(changes.files)),
        ("Sockets", _items(changes.sockets)),
        ("Pipes", _items(changes.pipes)),
        ("Limits", _items(changes.limits)),
    )
    head = (
        f"{changes.before[:12]} → {changes.after[:12]}\n"
        f"clocks went on  realtime {span(passed.realtime_ns)}, monotonic {span(passed.monotonic_ns)}, "
        f"boottime {span(passed.boottime_ns)}\n"
        f"pages           {_pages(changes.pages) or 'none'}"
    )
    shown = [f"{title}\n{_indented(body)}" for title, body in sections if body]
    return "\n\n".join([head, *(shown or [_UNCHANGED])])


def _items(items: Iterable[ItemChange]) -> str:
    return "\n".join(
        f"{_MARKS[item.change]} {'' if item.pid is None else f'{item.pid}  '}{on_one_line(item.subject)}"
        + _fields(item.fields)
        for item in items
    )


def _fields(fields: Iterable[FieldChange]) -> str:
    told = ", ".join(
        f"{field.name.removesuffix('_bytes').removesuffix('_ns').replace('_', ' ')} "
        f"{_value(field, field.before)} → {_value(field, field.after)}"
        for field in fields
    )
    return f"  {told}" if told else ""


def _value(field: FieldChange, value: Value) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return on_one_line(value[:_DIGEST_DIGITS] if field.name == "digest" else value)
        case int():
            return _number(field, value)


def _number(field: FieldChange, value: int) -> str:
    if field.name.endswith("_bytes"):
        # Where rounding would hide the change, the number itself.
        told = {human_bytes(each) for each in (field.before, field.after) if isinstance(each, int)}
        return human_bytes(value) if len(told) > 1 else str(value)
    if field.name == "mtime_ns":
        return rfc3339(Nanoseconds(value))
    if field.name in _ADDRESSES:
        return f"{value:#x}"
    return f"{value:#o}" if field.name in _OCTAL else str(value)


def _space(space: SpaceChange) -> str:
    """Nothing for memory in which nothing changed."""
    if space.change is Change.CHANGED and not space.areas and space.pages.is_quiet:
        return ""
    title = ", ".join(map(str, space.pids)) or space.name
    lines = [f"{_MARKS[space.change]} {title}  {_pages(space.pages) or 'nothing stored'}"]
    lines += [f"    {_area(area)}" for area in space.areas]
    return "\n".join(lines)


def _area(area: AreaChange) -> str:
    size = human_bytes(area.end - area.start)
    place = f"{area.start:x}-{area.end:x} {area.permissions} {size} {area.kind}"
    said = [f"{_MARKS[area.change]} {place}", on_one_line(area.path), _pages(area.pages)]
    return "  ".join(filter(None, said)) + _fields(area.fields)


def _pages(pages: PageCounts) -> str:
    told = (
        (pages.same, "the same"),
        (pages.changed, "changed"),
        (pages.new, "new"),
        (pages.gone, "gone"),
    )
    return ", ".join(f"{count} {what} ({human_bytes(count * PAGE_BYTES)})" for count, what in told if count)


def _pages_document(pages: PageCounts) -> dict[str, int]:
    counts: dict[str, int] = plain(pages)
    return counts | {f"{name}_bytes": count * PAGE_BYTES for name, count in counts.items()}


def _space_document(space: SpaceChange) -> dict[str, Any]:
    document: dict[str, Any] = plain(space)
    return document | {
        "areas": [plain(area) | {"pages": _pages_document(area.pages)} for area in space.areas],
        "pages": _pages_document(space.pages),
    }


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
