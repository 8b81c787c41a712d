"""The shape of every type of the model: how its values become plain ones, and are read back.

Rules: F13 to F18 of images/FORMAT.md. A dataclass is a map of its fields in their order; all are there, and
no others. The shapes are built from the annotations, once, so that the model is the only place where a field
is declared.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from enum import StrEnum
from functools import cache
from typing import Any, Final, Protocol

from ckpt.codec import names
from ckpt.codec.limits import TEXT_BYTES_MAX
from ckpt.codec.packed import Plain, Reader, Refused, Scalar, type_names
from ckpt.codec.rules import RULES
from ckpt.units import (
    ByteCount,
    CheckpointId,
    DeviceNumber,
    Digest,
    InodeNumber,
    JobName,
    Nanoseconds,
    Pid,
    Tag,
)


class Shape(Protocol):
    """How values of one type are written and read."""

    def write(self, value: Any) -> Plain:
        """The plain value."""

    def read(self, reader: Reader) -> Any:
        """The value that comes next, checked."""


def shape_of(type_: Any) -> Shape:
    """The shape of a type of the model: a dataclass, enum, NewType, tuple, int, str, bytes, bool, or None."""
    return _shape_of(type_)


@cache
def _shape_of(type_: Any) -> Shape:
    if type_ in _SCALARS:
        return _SCALARS[type_]
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        return _Choice(type_)
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return _Record(type_)
    arguments = typing.get_args(type_)
    if typing.get_origin(type_) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _Sequence(shape_of(arguments[0]))
    # "NewType | None" is a typing.Union, "int | None" a types.UnionType.
    optional = typing.get_origin(type_) in {typing.Union, types.UnionType}
    if optional and len(arguments) == 2 and arguments[1] is type(None):
        return _Optional(shape_of(arguments[0]))
    raise TypeError(type_)


def _expect(kind: type, plain: object) -> None:
    # type() and not isinstance(): True is no number here.
    if type(plain) is not kind:
        found = type_names.get(type(plain), type(plain).__name__)
        raise Refused(f"{found} where {type_names[kind]} belongs")


class _Scalar(ABC):
    def write(self, value: Any) -> Plain:
        plain: Plain = value
        return plain

    def read(self, reader: Reader) -> Any:
        return self.accept(reader.scalar())

    @abstractmethod
    def accept(self, plain: Scalar) -> Any:
        """The value that the plain one stands for."""


class _Flag(_Scalar):
    def accept(self, plain: Scalar) -> Any:
        _expect(bool, plain)
        return plain


class _Number(_Scalar):
    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def accept(self, plain: Scalar) -> Any:
        if type(plain) is not int:
            _expect(int, plain)
        elif not self.least <= plain <= self.most:
            raise Refused(f"{plain} is not between {self.least} and {self.most}")
        return plain


class _Text(_Scalar):
    def accept(self, plain: Scalar) -> Any:
        if not isinstance(plain, str):
            _expect(str, plain)
        elif "\0" in plain:
            raise Refused("a text with a NUL in it")
        elif len(plain) > TEXT_BYTES_MAX:
            raise Refused(f"a text of more than {TEXT_BYTES_MAX} bytes")
        return plain


class _Bytes(_Scalar):
    """As the reader bounds them; in messages only, no document has such a field."""

    def accept(self, plain: Scalar) -> Any:
        _expect(bytes, plain)
        return plain


class _Label(_Text):
    def accept(self, plain: Scalar) -> Any:
        text = super().accept(plain)
        if reason := names.refuse_label(text):
            raise Refused(reason)
        return text


class _Digest(_Scalar):
    """64 hexadecimal digits, written as the 32 bytes that they stand for."""

    def write(self, value: Any) -> Plain:
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise Refused(names.refuse_digest(value)) from None

    def accept(self, plain: Scalar) -> Any:
        if not isinstance(plain, bytes):
            _expect(bytes, plain)
        elif len(plain) != 32:
            raise Refused(f"a digest of {len(plain)} bytes, not of 32")
        else:
            return plain.hex()
        raise AssertionError


class _Choice(_Scalar):
    def __init__(self, kind: type[StrEnum]) -> None:
        self._members = {str(member): member for member in kind}

    def write(self, value: Any) -> Plain:
        return str(value)

    def accept(self, plain: Scalar) -> Any:
        member = self._members.get(plain) if isinstance(plain, str) else None
        if member is None:
            raise Refused(f"{str(plain)[:80]!r} is none of {', '.join(self._members)}")
        return member


class _Optional:
    def __init__(self, inner: Shape) -> None:
        self._inner = inner

    def write(self, value: Any) -> Plain:
        return None if value is None else self._inner.write(value)

    def read(self, reader: Reader) -> Any:
        if reader.nothing_follows():
            return reader.scalar()
        return self._inner.read(reader)


class _Sequence:
    def __init__(self, item: Shape) -> None:
        self._item = item

    def write(self, value: Any) -> Plain:
        write = self._item.write
        return [write(item) for item in value]

    def read(self, reader: Reader) -> Any:
        read = self._item.read
        found: list[object] = []
        # The list grows as its items are read: a count that lies costs no memory.
        for index in range(reader.items()):
            try:
                found.append(read(reader))
            except Refused as refused:
                raise refused.inside(f"[{index}]") from None
        return tuple(found)


class _Record:
    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._rule = RULES.get(kind)
        hints = typing.get_type_hints(kind)
        self._fields = tuple((field.name, shape_of(hints[field.name])) for field in dataclasses.fields(kind))

    def write(self, value: Any) -> Plain:
        return {name: shape.write(getattr(value, name)) for name, shape in self._fields}

    def read(self, reader: Reader) -> Any:
        values: dict[str, object] = {}
        count = reader.entries()
        for name, shape in self._fields:
            if len(values) == count:
                raise Refused(f"the field {name!r} is missing")
            self._expect_key(reader.scalar(), name)
            try:
                values[name] = shape.read(reader)
            except Refused as refused:
                raise refused.inside(name) from None
        if count > len(values):
            raise Refused(
                f"{count - len(values)} fields too many, the first is {str(reader.scalar())[:80]!r}"
            )
        value = self._kind(**values)
        if self._rule:
            self._rule(value)
        return value

    def _expect_key(self, key: Scalar, name: str) -> None:
        if key == name:
            return
        if any(key == known for known, _ in self._fields):
            raise Refused(f"the field {name!r} is missing, or not in its place before {key!r}")
        raise Refused(f"an unknown field {str(key)[:80]!r} where {name!r} belongs")


_INT64: Final = (-(1 << 63), (1 << 63) - 1)
_UINT64: Final = (0, (1 << 64) - 1)

_SCALARS: Final[dict[Any, _Scalar]] = {
    bool: _Flag(),
    int: _Number(_INT64[0], _UINT64[1]),
    str: _Text(),
    bytes: _Bytes(),
    ByteCount: _Number(0, _INT64[1]),
    Nanoseconds: _Number(*_INT64),
    Pid: _Number(0, (1 << 31) - 1),
    InodeNumber: _Number(*_UINT64),
    DeviceNumber: _Number(*_UINT64),
    Digest: _Digest(),
    CheckpointId: _Digest(),
    JobName: _Label(),
    Tag: _Label(),
}
