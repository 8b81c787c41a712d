"""Where the memory of a stored image set lies, read from a few of its files in a directory that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.criu.areas import address_spaces
from ckpt.model.memory import AddressSpace

_NAMES: Final = frozenset(("pstree.img", "files.img", "memfd.img"))
_PREFIXES: Final = ("mm-", "pagemap-")
_IDS: Final = "ids-"
_CORES: Final = "core-"


class ImageLayouts:
    """Fits the port MemoryLayouts."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read."""
        listed = tuple(names)
        # What a task shares with others stands in a file of its own, or else in its core.
        ids = _IDS if any(name.startswith(_IDS) for name in listed) else _CORES
        prefixes = (*_PREFIXES, ids)
        return tuple(name for name in listed if name in _NAMES or name.startswith(prefixes))

    def read(self, fill: Callable[[str], None]) -> tuple[AddressSpace, ...]:
        """The address spaces of an image set whose wanted files `fill` brings."""
        try:
            with tempfile.TemporaryDirectory(prefix="ckpt-") as directory:
                fill(directory)
                return address_spaces(Path(directory))
        except OSError as error:
            raise OsRefused(
                operation="write", subject=tempfile.gettempdir(), reason=error.strerror or str(error)
            ) from error
