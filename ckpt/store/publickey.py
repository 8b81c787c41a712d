"""A public key as people see it: one line, `ckpt-ed25519 BASE64 COMMENT`, and a fingerprint."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ckpt.errors import Usage
from ckpt.store.sealing import KEY_BYTES

PUBLIC_WORD: Final = "ckpt-ed25519"
PRIVATE_WORD: Final = "ckpt-ed25519-private"
FINGERPRINT_DIGITS: Final = 16
COMMENT_CHARACTERS_MAX: Final = 200

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key, and what it is called here."""

    public: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that people tell keys apart by; what is trusted is the whole key."""
        return fingerprint(self.public)

    @property
    def key_text(self) -> str:
        """The key without the comment."""
        return f"{PUBLIC_WORD} {to_base64(self.public)}"

    @property
    def text(self) -> str:
        """The key as one line."""
        return f"{self.key_text} {self.comment}".rstrip()


def fingerprint(public: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a public key."""
    return sha256(public).hexdigest()[:FINGERPRINT_DIGITS]


def parse_public(text: str) -> TrustedKey:
    """The key that the text names: "ckpt-ed25519 BASE64 COMMENT", or the same without the first word.

    Raises:
        Usage: it names none, or has more than one line.
    """
    words = text.split()
    if PRIVATE_WORD in words:
        raise Usage(
            problem="This is the secret half of a key, which nobody else should ever have.",
            remedy="Give what 'ckpt trust show' prints on the host that signs.",
        )
    if words[:1] == [PUBLIC_WORD]:
        del words[0]
    public = from_base64(words[0]) if words else None
    if public is None or "\n" in text.strip():
        raise Usage(
            problem=f"'{shown(text)}' is no public key.",
            remedy=f"Give the line that 'ckpt trust show' prints on the host that signs: {PUBLIC_WORD} …",
        )
    return TrustedKey(public=public, comment=checked_comment(" ".join(words[1:])))


def checked_comment(comment: str) -> str:
    """The comment on one line.

    Raises:
        Usage: it is too long, or would do things to a terminal.
    """
    words = " ".join(comment.split())
    if _CONTROL.search(words) or len(words) > COMMENT_CHARACTERS_MAX:
        raise Usage(
            problem="The comment of a key has no control characters,"
            f" and {COMMENT_CHARACTERS_MAX} characters at most.",
            remedy="Give another one with --comment.",
        )
    return words


def from_base64(text: str) -> bytes | None:
    """The 32 bytes, if the text is the one way to write them in base64."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == KEY_BYTES and to_base64(found) == text else None


def to_base64(content: bytes) -> str:
    """The bytes in base64."""
    return base64.b64encode(content).decode("ascii")


def shown(text: str) -> str:
    """The beginning of what somebody wrote, on one line."""
    return _CONTROL.sub("?", text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…")
