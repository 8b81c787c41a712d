"""This host's signing key, and the keys whose checkpoints it restores.

Rules: restoring a checkpoint is running its code as root, so who may write to these files may become root; see
guarded.py for what is refused. The host's key is in the trust file before it exists, so that no crash leaves a
key whose checkpoints its own host refuses; who takes the line out again is obeyed. Programs change the files one
at a time, under a lock, and replace them whole; people edit the trust file as they like.

    signing.key   ckpt-ed25519-private BASE64         the secret half; mode 0600; made on first use
    trusted       ckpt-ed25519 BASE64 COMMENT         a key on each line; empty lines and those with # mean nothing
    unsigned      ID                                  stores, by their ids, of which no signatures are required
    lock          empty
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ckpt.errors import NoSuchTarget, ObjectCorrupt, Usage
from ckpt.store import guarded
from ckpt.store.publickey import (
    FINGERPRINT_DIGITS,
    PRIVATE_WORD,
    PUBLIC_WORD,
    TrustedKey,
    checked_comment,
    from_base64,
    parse_public,
    shown,
    to_base64,
)
from ckpt.store.sealing import SigningKey

_FILE_BYTES_MAX: Final = 1 << 20
_FINGERPRINT: Final = re.compile(rf"[0-9a-f]{{4,{FINGERPRINT_DIGITS}}}", re.ASCII)
_HEADER: Final = f"# Whose checkpoints this host restores, one key a line: {PUBLIC_WORD} KEY COMMENT"


class KeyRing:
    """The keys in a directory, which need not exist yet; `own_comment` is what this host calls its own key."""

    def __init__(self, directory: str, *, own_comment: str) -> None:
        self._directory = directory
        self._own_comment = own_comment
        self._signing_key = f"{directory}/signing.key"
        self._trusted = f"{directory}/trusted"
        self._unsigned = f"{directory}/unsigned"

    @property
    def trust_file(self) -> str:
        """The file that says who is trusted."""
        return self._trusted

    @property
    def own_public(self) -> bytes:
        """The public half of this host's key, which is made if there is none; raises what signing_key() does."""
        return self.signing_key().public

    def own_key(self) -> TrustedKey:
        """The same, as other hosts are told it."""
        return TrustedKey(public=self.own_public, comment=shown(self._own_comment))

    def signing_key(self) -> SigningKey:
        """This host's key, made and trusted on first use.

        Raises:
            OsRefused, NoSpace: a file cannot be read or written, or others could have.
            ObjectCorrupt: a file is not as this module writes it.
        """
        return self.made_key() or self._make()

    def made_key(self) -> SigningKey | None:
        """This host's key, if it has been made; raises what signing_key() does."""
        content = guarded.read_secret(self._signing_key, bytes_max=_FILE_BYTES_MAX)
        if content is None:
            return None
        word, _, rest = content.decode("utf-8", "replace").strip().partition(" ")
        seed = from_base64(rest) if word == PRIVATE_WORD else None
        if seed is None:
            raise ObjectCorrupt(
                kind="signing key",
                name=self._signing_key,
                reason=f"it is not {PRIVATE_WORD} and 44 characters",
                remedy="Copy it back from a backup; or move it away, and the next use makes a new key.",
            )
        return SigningKey.from_seed(seed)

    def trusted(self) -> tuple[TrustedKey, ...]:
        """The keys whose checkpoints this host restores, in the order of the file.

        Raises:
            OsRefused: the file cannot be read, or others could have written it.
            ObjectCorrupt: a line is no key; names its number.
        """
        return tuple(key for _, key in self._lines() if key is not None)

    def find(self, public: bytes) -> TrustedKey | None:
        """The trusted key with these bytes; raises what trusted() does."""
        return next((key for key in self.trusted() if key.public == public), None)

    def add(self, key: str | bytes, comment: str = "") -> TrustedKey:
        """Trust a key from now on; one that is trusted already stays as it is.

        Raises:
            Usage: the text names no key, or the comment cannot be one.
            OsRefused, NoSpace, ObjectCorrupt: as signing_key() says.
        """
        named = TrustedKey(public=key, comment="") if isinstance(key, bytes) else parse_public(key)
        wanted = TrustedKey(public=named.public, comment=checked_comment(comment) or named.comment)
        with self._locked():
            return self.find(wanted.public) or self._append(wanted)

    def remove(self, name: str) -> TrustedKey:
        """Trust a key no more, named by its text or by the beginning of its fingerprint.

        Raises:
            NoSuchTarget: no such key is trusted.
            Usage: it is no name of a key, or several keys begin so.
            OsRefused, NoSpace, ObjectCorrupt: as signing_key() says.
        """
        with self._locked():
            chosen = self._named(name)
            self._write([line for line, key in self._lines() if key is None or key.public != chosen.public])
        return chosen

    def allows_unsigned(self, store: str) -> bool:
        """Whether checkpoints are restored from the store with this id that nobody has signed.

        Raises:
            OsRefused: the file cannot be read, or others could have written it.
        """
        return store in self._unsigned_stores()

    def allow_unsigned(self, store: str, *, allowed: bool) -> None:
        """Say so, or take it back; raises what trusted() and add() do."""
        with self._locked():
            others = [line for line in self._unsigned_stores() if line != store]
            lines = [*others, store] if allowed else others
            guarded.replace(self._unsigned, "".join(f"{line}\n" for line in lines).encode("ascii"))

    def _unsigned_stores(self) -> list[str]:
        content = guarded.read_guarded(self._unsigned, bytes_max=_FILE_BYTES_MAX) or b""
        return content.decode("ascii", "replace").split()

    def _make(self) -> SigningKey:
        with self._locked():
            made = self.made_key()
            if made is None:
                made = SigningKey.generate()
                self._append(TrustedKey(public=made.public, comment=shown(self._own_comment)))
                line = f"{PRIVATE_WORD} {to_base64(made.seed)}\n"
                guarded.replace(self._signing_key, line.encode("ascii"))
            return made

    def _named(self, name: str) -> TrustedKey:
        prefix = name.strip().lower()
        if _FINGERPRINT.fullmatch(prefix):
            found = {key.public: key for key in self.trusted() if key.fingerprint.startswith(prefix)}
        else:
            public = _public_named(name)
            found = {key.public: key for key in self.trusted() if key.public == public}
        if not found:
            raise NoSuchTarget(kind="trusted key", name=shown(name), remedy="See 'ckpt trust list'.")
        if len(found) > 1:
            raise Usage(
                problem=f"The fingerprints of {len(found)} trusted keys begin with {prefix}.",
                remedy="Give more digits: see 'ckpt trust list'.",
            )
        return next(iter(found.values()))

    def _lines(self) -> list[tuple[str, TrustedKey | None]]:
        """The lines of the trust file without their ends, each with the key that it has."""
        content = guarded.read_guarded(self._trusted, bytes_max=_FILE_BYTES_MAX)
        if not content:
            return []
        lines = content.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        return [(line, self._key_of(number, line.strip())) for number, line in enumerate(lines, 1)]

    def _key_of(self, number: int, line: str) -> TrustedKey | None:
        if not line or line.startswith("#"):
            return None
        try:
            return parse_public(line)
        except Usage as error:
            raise ObjectCorrupt(
                kind="trust file",
                name=self._trusted,
                reason=f"line {number} is not a key and a comment",
                remedy=f"Correct the line, or put a '#' before it. {error.problem}",
            ) from None

    def _append(self, key: TrustedKey) -> TrustedKey:
        lines = [line for line, _ in self._lines()] or [_HEADER]
        self._write([*lines, key.text])
        return key

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        guarded.replace(self._trusted, text.encode("utf-8", "surrogateescape"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        guarded.make_directory(self._directory)
        path = f"{self._directory}/lock"
        with guarded.converted("lock", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, guarded.FILE_MODE)
        try:
            # Whoever has it writes two small files: nobody waits for long.
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            # Closing is not enough: a child that was forked meanwhile has the lock, too, until it ends.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def _public_named(name: str) -> bytes:
    try:
        return parse_public(name).public
    except Usage:
        raise Usage(
            problem=f"'{shown(name)}' is neither a public key nor 4 to {FINGERPRINT_DIGITS} digits of a fingerprint.",
            remedy="See 'ckpt trust list'.",
        ) from None
