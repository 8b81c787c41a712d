"""Tell how many bytes a dump stores and a restore fetches, before they move.

Rule: what is known early is expected at once: the images of a tree, or of a checkpoint. Any other file is expected when
its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ckpt.cli.progress import Teller
    from ckpt.flow.ports import Dumper, Store, StoreWriter
    from ckpt.model.checkpoint import AddressRun, Checkpoint, StoredFile
    from ckpt.model.reports import StoredCheckpoint
    from ckpt.units import CheckpointId


def expecting_dump(dumper: Dumper, store: Store, teller: Teller) -> tuple[Dumper, Store]:
    """Both, telling of what is stored."""
    expected = _Images(teller)
    return cast("Dumper", _DumperSeen(dumper, expected)), cast("Store", _StoreWritten(store, expected))


def expecting_restore(store: Store, teller: Teller) -> Store:
    """The store, telling of what is fetched."""
    return cast("Store", _StoreRead(store, teller))


class _Over:
    """Passes everything on to the port behind it but what a subclass has of its own."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class _Images:
    """The image files that were expected, by their paths."""

    def __init__(self, teller: Teller) -> None:
        self.teller = teller
        self._paths: set[str] = set()

    def expect(self, paths: list[str]) -> None:
        """These will be stored."""
        self._paths.update(paths)
        self.teller("storing the images")
        self._expect_sizes(paths)

    def begin(self, path: str) -> None:
        """This one is being stored now."""
        if path not in self._paths:
            self.teller("storing files")
            self._expect_sizes([path])

    def _expect_sizes(self, paths: list[str]) -> None:
        if self.teller.is_watched:
            with suppress(OSError):  # who stores it will say what is wrong
                self.teller.expect(sum(os.stat(path).st_size for path in paths))


class _DumperSeen(_Over):
    """A dumper whose images are expected to be stored when they are asked for."""

    def __init__(self, port: Dumper, expected: _Images) -> None:
        super().__init__(port)
        self._expected = expected

    def image_files(self, images: str) -> tuple[str, ...]:
        names: tuple[str, ...] = self._port.image_files(images)
        self._expected.expect([f"{images}/{name}" for name in names])
        return names


class _StoreWritten(_Over):
    """A store whose writers tell what they store."""

    def __init__(self, port: Store, expected: _Images) -> None:
        super().__init__(port)
        self._expected = expected

    @contextmanager
    def writer(self, parent: CheckpointId | None) -> Iterator[StoreWriter]:
        with self._port.writer(parent) as writer:
            yield cast("StoreWriter", _WriterSeen(writer, self._expected))


class _WriterSeen(_Over):
    """A writer that tells what it stores."""

    def __init__(self, port: StoreWriter, expected: _Images) -> None:
        super().__init__(port)
        self._expected = expected

    def add_file(self, path: str, name: str, addresses: tuple[AddressRun, ...] = ()) -> StoredFile:
        self._expected.begin(path)
        stored: StoredFile = self._port.add_file(path, name, addresses)
        return stored

    def commit(self, checkpoint: Checkpoint) -> CheckpointId:
        self._expected.teller("making it durable")
        found: CheckpointId = self._port.commit(checkpoint)
        return found


class _StoreRead(_Over):
    """A store that tells what is fetched from it."""

    def __init__(self, port: Store, teller: Teller) -> None:
        super().__init__(port)
        self._teller = teller
        self._images: tuple[StoredFile, ...] = ()
        self._expected = False

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        self._teller("opening the checkpoint")
        stored: StoredCheckpoint = self._port.load(checkpoint)
        self._images = tuple(file for images in stored.checkpoint.image_sets for file in images.files)
        self._expected = False
        return stored

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        if file not in self._images:
            self._teller("reading files")
            self._teller.expect(file.size_bytes)
        elif not self._expected:
            self._teller("reading the images")
            self._teller.expect(sum(image.size_bytes for image in self._images))
            self._expected = True
        self._port.fetch(checkpoint, file, path)
