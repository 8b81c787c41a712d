"""Where a store's objects are: immutable bytes under names, the only thing that kinds of stores differ in.

Rules: F40 to F49 of images/FORMAT.md. Create-if-absent is the only primitive that has to be atomic, because it
is the only one that object stores have (S3: If-None-Match). An object, once there, never changes; only a
damaged one may be replaced by what its name promises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from ckpt.units import ByteCount

_NAME: Final = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9._@-]{0,200}/){0,3}[A-Za-z0-9][A-Za-z0-9._@-]{0,200}", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStat:
    """An object's size, and the space that it takes (on disk: its blocks)."""

    size_bytes: ByteCount
    space_bytes: ByteCount


Content = bytes | tuple[bytes, ...]
"""The bytes of an object, in one piece or in several."""


class Lease(Protocol):
    """What somebody at work needs."""

    def pin(self, names: Iterable[str]) -> None:
        """Add names of objects. Inside writing(), before it is looked whether they are there."""


class Backend(Protocol):
    """Named immutable objects. Every error is a CkptError; an absent object is None.

    All methods may be called from several threads at once.
    """

    @property
    def place(self) -> str:
        """How the user named it."""

    def create(self, name: str, content: Content) -> ByteCount | None:
        """Create an object, and give the space that it takes; None if there is one of this name already.

        It appears at once with its whole content, and the content is durable before the name appears.

        Raises:
            NoSpace: full; nothing of the object remains.
            StoreUnusable: not writable.
        """

    def replace(self, name: str, content: bytes) -> ByteCount:
        """Create an object, or put a whole one in the place of one that is cut off; gives its space.

        Only for objects whose name is the digest of their content: whoever comes last writes the same.

        Raises:
            NoSpace: full; what was there remains.
        """

    def flush(self) -> None:
        """Make every name durable that this backend created, deleted or saw (by stat) until now."""

    def read(self, name: str, limit: int) -> bytes | None:
        """The object's content.

        Raises:
            ObjectCorrupt: it is longer than `limit` bytes, or the disk cannot read it.
        """

    def read_part(self, name: str, offset: int, count: int) -> bytes | None:
        """At most `count` bytes of the object from `offset` on."""

    def stat(self, name: str) -> ObjectStat | None:
        """The object's size."""

    def list(self, folder: str) -> Iterator[str]:
        """The names of all objects below the folder ("chunks"), sorted; among them whatever strayed there."""

    def delete(self, name: str) -> ByteCount:
        """Delete an object, and give the space that it took: 0 if there was none."""

    def lease(self) -> AbstractContextManager[Lease]:
        """Tell every sweep what is needed that no manifest says yet, until the end or until this process dies.

        Raises:
            StoreUnusable: not writable.
        """

    def pinned(self) -> frozenset[str]:
        """The names that the leases of the living say are needed. Only inside sweeping()."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold off every deletion, for as long as an object or a manifest takes; other writers are welcome.

        Raises:
            Locked: a sweep did not end in time.
            StoreUnusable: not writable.
        """

    def sweeping(self, *, patient: bool) -> AbstractContextManager[None]:
        """Hold off everybody who creates or deletes; wait for those at work if `patient`.

        Raises:
            Locked: somebody is at work; names the process if it can.
            StoreUnusable: not writable.
        """

    def clear_leftovers(self) -> tuple[int, ByteCount]:
        """Remove what writers left that died, and give count and space. Only inside sweeping()."""


def check_name(name: str) -> None:
    """Raise ValueError if this can be no object's name: a bug, since names are made by ckpt alone."""
    if not is_name(name):
        raise ValueError(name)


def is_name(name: str) -> bool:
    """Whether this can be an object's name: at most four components that cannot climb, of ASCII."""
    return bool(_NAME.fullmatch(name))
