"""The secret that a call names for a store that is made, or that gets another key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckpt.errors import WrongState
from ckpt.store import passkey


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """The secret, and the file that was made to keep it, if one was."""

    value: bytes = field(repr=False)
    made_file: str | None


@contextmanager
def new_secret(file: str | None, command: str | None) -> Iterator[NewSecret]:
    """The secret in the file, which is made if it does not exist, or of the command: one of them is given.

    A file that was made stays, however the body ends: a store may already open with it alone. But WrongState
    says that the store refused before anything was written; then the file goes again.

    Raises:
        OsRefused, NoSpace: the file cannot be read or made.
        CommandFailed: the command gives no secret.
    """
    if file is None:
        assert command is not None
        yield NewSecret(value=passkey.run_key_command(command), made_file=None)
        return
    made = not os.path.lexists(file)
    if made:
        passkey.generate_key_file(file)
    try:
        yield NewSecret(value=passkey.read_key_file(file), made_file=file if made else None)
    except WrongState:
        if made:
            os.unlink(file)
        raise
