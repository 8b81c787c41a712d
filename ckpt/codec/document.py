"""A document: one value of the model as msgpack, in an envelope that says what it is and in which version.

Rules: F9 to F12 and F18 of images/FORMAT.md. The version is read before the value, so that a document of a newer
ckpt is refused as such and not taken for damage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from ckpt.codec.frame import Kind, newer
from ckpt.codec.packed import Reader, Refused, pack
from ckpt.codec.shapes import shape_of
from ckpt.errors import ObjectCorrupt

_Value = TypeVar("_Value")

_ENVELOPE: Final = ("kind", "version", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentType(Generic[_Value]):
    """One type of document, the version of it that this ckpt writes, and the older ones that it also reads.

    Values of older versions have a method today() that gives the value as it would be written now.
    """

    kind: Kind
    version: int
    content: type[_Value]
    older: Mapping[int, type[Any]] = field(default_factory=dict)

    def encode(self, value: _Value) -> bytes:
        """The document's bytes; the same value always gives the same bytes.

        Raises:
            ObjectCorrupt: the value breaks a rule of the format; names the field.
        """
        name = "that was to be written"
        try:
            shape = shape_of(self.content)
            content = pack({"kind": str(self.kind), "version": self.version, "value": shape.write(value)})
        except Refused as refused:
            raise self._damaged(name, refused) from None
        # What cannot be read back must never be written: the checkpoint would be lost in silence.
        if self.decode(content, name) != value:
            raise self._damaged(name, Refused("it would not read back as it is"))
        return content

    def decode(self, content: bytes, name: str) -> _Value:
        """The value in the document that the errors call `name`.

        Raises:
            ObjectCorrupt: not what the format says; names the field.
            FormatUnknown: written by a newer ckpt; names both versions.
        """
        _, value = self.decode_any(content, name)
        return cast(_Value, value if isinstance(value, self.content) else value.today())

    def decode_any(self, content: bytes, name: str) -> tuple[int, Any]:
        """The version of the document, and its value as that version describes it.

        Raises:
            ObjectCorrupt: not what the format says; names the field.
            FormatUnknown: written by a newer ckpt; names both versions.
        """
        try:
            reader = Reader(content)
            version = self._read_envelope(reader, name)
            value = shape_of(self.older.get(version, self.content)).read(reader)
            reader.end()
        except Refused as refused:
            raise self._damaged(name, refused) from None
        return version, value

    def _read_envelope(self, reader: Reader, name: str) -> int:
        """The version, when the reader stands before the value."""
        if reader.entries() != len(_ENVELOPE):
            raise Refused("it is no document: kind, version and value belong there")
        version = self.version
        for key in _ENVELOPE:
            found = reader.scalar()
            if found != key:
                raise Refused(f"the field {str(found)[:80]!r} where {key!r} belongs")
            if key == "kind":
                self._read_kind(reader, name)
            if key == "version":
                version = self._read_version(reader, name)
        return version

    def _read_kind(self, reader: Reader, _name: str) -> None:
        found = reader.scalar()
        if found != str(self.kind):
            raise Refused(f"it is a document of the kind {str(found)[:80]!r}").inside("kind")

    def _read_version(self, reader: Reader, name: str) -> int:
        found = reader.scalar()
        if type(found) is not int or found < 1:
            raise Refused(f"{str(found)[:80]!r} is no version").inside("version")
        if found > self.version:
            raise newer(self.kind, name, f"version {found}", f"version {self.version} and older")
        if found != self.version and found not in self.older:
            raise Refused(f"there is no version {found} of it").inside("version")
        return found

    def _damaged(self, name: str, refused: Refused) -> ObjectCorrupt:
        where = f"{refused.path}: " if refused.path else ""
        return ObjectCorrupt(kind=str(self.kind), name=name, reason=f"{where}{refused.reason}")
