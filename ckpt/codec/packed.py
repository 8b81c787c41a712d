"""The door to msgpack: values in, bytes out; and bytes read piece by piece, each bounded first.

Rule: nothing is built that was not asked for. A decoder that builds a whole tree first can be made to
allocate fifty times its input (a list of empty lists); this one refuses every container but the one that
the shape of the model expects next.
Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Final

import msgpack

from ckpt.codec.limits import DOCUMENT_BYTES_MAX, ITEMS_MAX, TEXT_BYTES_MAX

type_names: Final = {
    bool: "a truth value",
    int: "a number",
    str: "a text",
    bytes: "bytes",
    type(None): "nothing",
}
"""What a scalar is called in a sentence."""

_NIL: Final = b"\xc0"

Scalar = bool | int | str | bytes | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


class Refused(Exception):
    """The bytes are not what the shape expects; `path` grows from the inside out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, segment: str) -> Refused:
        """The same, seen from one level further out."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        self.path = f"{segment}{joint}{self.path}"
        return self


class Reader:
    """Reads msgpack bytes from the front, one piece at a time."""

    def __init__(self, content: bytes) -> None:
        if len(content) > DOCUMENT_BYTES_MAX:
            raise Refused(f"{len(content)} bytes, and {DOCUMENT_BYTES_MAX} is the most")
        self._content = content
        # Containers are never unpacked, only their headers are read: so none may be longer than nothing.
        self._unpacker = msgpack.Unpacker(
            raw=False,
            # Paths on Linux are bytes: what is not UTF-8 in them is kept, as os.fsdecode() keeps it.
            unicode_errors="surrogateescape",
            max_buffer_size=max(1, len(content)),
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=TEXT_BYTES_MAX,
        )
        self._unpacker.feed(content)

    def scalar(self) -> Scalar:
        """The next piece, which must be a truth value, a number, a text, bytes or nothing."""
        value = self._next(self._unpacker.unpack)
        if isinstance(value, bool | int | str | bytes) or value is None:
            return value
        raise Refused(f"a {type(value).__name__} where a plain value belongs")

    def nothing_follows(self) -> bool:
        """Whether the next piece is "nothing"; it stays there."""
        place = self._unpacker.tell()
        return self._content[place : place + 1] == _NIL

    def items(self) -> int:
        """How many items the list has that begins here."""
        count = self._next(self._unpacker.read_array_header)
        if not isinstance(count, int) or count > ITEMS_MAX:
            raise Refused(f"a list of {count} items, and {ITEMS_MAX} is the most")
        return count

    def entries(self) -> int:
        """How many entries the map has that begins here."""
        count = self._next(self._unpacker.read_map_header)
        if not isinstance(count, int):
            raise Refused("no map")
        return count

    def end(self) -> None:
        """Refuse anything that follows."""
        rest = len(self._content) - self._unpacker.tell()
        if rest:
            raise Refused(f"{rest} bytes too many at its end")

    def _next(self, read: object) -> object:
        try:
            return read()  # type: ignore[operator]
        except msgpack.OutOfData:
            raise Refused("it ends too early") from None
        # msgpack's own errors (FormatError, StackError, a length over its bound) are ValueErrors, or
        # UnpackExceptions that are not.
        except (ValueError, msgpack.UnpackException) as error:
            raise Refused(f"no msgpack that belongs here ({error or type(error).__name__})") from None


def pack(value: Plain) -> bytes:
    """The msgpack bytes of a value: the shortest form of everything, maps in the order given.

    Raises:
        Refused: a number or a text that msgpack cannot hold.
    """
    try:
        return bytes(msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape"))
    except (ValueError, OverflowError) as error:
        raise Refused(str(error)) from None
