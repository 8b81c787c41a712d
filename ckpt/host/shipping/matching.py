"""Which content a file of the source has: the same as before, a change of a former one, or a new one.

Rules:
- Several names of one file are one content. A file that replaced another one under its name is a change of it, so that
  only what differs is sent; one that was given another name keeps its content.
- Numbers of files that are gone are given to new ones: the time of birth tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ckpt.errors import OsRefused
from ckpt.host.inspection import syscalls
from ckpt.host.saved_files_found import FoundFile
from ckpt.host.shipping.blocks import BlockTable
from ckpt.model.shipping import SHIPPED_MAX


@dataclass(slots=True)
class Content:
    """One content: what the target has of it, and which version of the file was compared with that.

    `path` is where the target looks for a former content of it; `is_there` says whether the target has a file of `size`
    bytes by now, of which `table` has the digests.
    """

    number: int
    path: str
    size: int = 0
    is_there: bool = False
    table: BlockTable = field(default_factory=BlockTable)
    version: tuple[int, ...] | None = None
    born_ns: int | None = None


class Contents:
    """All contents of one migration."""

    def __init__(self) -> None:
        self._all: list[Content] = []
        self._by_key: dict[tuple[int, int], Content] = {}
        self._by_path: dict[str, Content] = {}

    def of(self, file: FoundFile) -> Content:
        """The content of a file that was matched last."""
        return self._by_key[_key(file)]

    def match(self, files: Iterable[FoundFile]) -> list[tuple[Content, FoundFile]]:
        """Each content once, with a file that has it now.

        Raises:
            OsRefused: there are too many.
        """
        found = tuple(files)
        still = {_key(file): content for file in found if (content := self._still(file))}
        taken = {content.number for content in still.values()}
        matched: dict[int, tuple[Content, FoundFile]] = {}
        by_key: dict[tuple[int, int], Content] = {}
        for file in found:
            if _key(file) not in by_key:
                content = still.get(_key(file))
                if content is None:
                    content = self._by_path.get(file.path)
                    if content is None or content.number in taken:
                        content = self._new(file.path)
                    # Else the file that was here is gone: this one took its place.
                    content.born_ns = _born_ns(file.path)
                by_key[_key(file)] = content
                matched[content.number] = (content, file)
                taken.add(content.number)
        self._by_key = by_key
        return list(matched.values())

    def _still(self, file: FoundFile) -> Content | None:
        """The content that this very file had before; None if there is none."""
        content = self._by_key.get(_key(file))
        # Numbers of files that are gone are given to new ones.
        if content is None or content.path == file.path or content.born_ns == _born_ns(file.path):
            return content
        return None

    def _new(self, path: str) -> Content:
        if len(self._all) == SHIPPED_MAX:
            raise OsRefused(
                operation="send", subject=path, reason=f"{SHIPPED_MAX} contents were sent already"
            )
        content = Content(number=len(self._all), path=path)
        self._all.append(content)
        self._by_path[path] = content
        return content


def _key(file: FoundFile) -> tuple[int, int]:
    return (file.status.st_dev, file.status.st_ino)


def _born_ns(path: str) -> int | None:
    with suppress(OSError):
        return syscalls.statx(path).btime_ns
    return None
