"""The lines of known_hosts files that say which key a host may show.

Rules: a key that is marked as revoked is known nowhere. Certificates are not understood: their authorities are passed
over, and so is a line that cannot be read, as ssh does.
Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Final

_REVOKED: Final = "@revoked"
_FIELDS: Final = 3
"""Names, kind of key, key; a comment may follow."""


def usable_lines(paths: Iterable[str]) -> tuple[str, ...]:
    """The lines of these files, those of the first one first; files that are not there have none.

    Raises:
        OSError: a file cannot be read.
    """
    known: list[tuple[bytes, str]] = []
    revoked: set[bytes] = set()
    for marker, fields in _lines(paths):
        key = _key(fields)
        if key and not marker:
            known.append((key, " ".join(fields)))
        elif key and marker == _REVOKED:
            revoked.add(key)
    return tuple(line for key, line in known if key not in revoked)


def _lines(paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The marker of each line, "" for none, and its fields without a comment."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    words = line.split()
                    if words and not words[0].startswith("#"):
                        marker = words.pop(0) if words[0].startswith("@") else ""
                        yield marker, words[:_FIELDS]
        except FileNotFoundError:
            continue


def _key(fields: list[str]) -> bytes:
    """The key of a line; none if it has none."""
    if len(fields) < _FIELDS:
        return b""
    try:
        return base64.b64decode(fields[-1], validate=True)
    except (binascii.Error, ValueError):
        return b""
