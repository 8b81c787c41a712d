"""A checkpoint as plain CRIU image directories: what `criu restore -D` takes.

    DIR/*.img          the image files, of a checkpoint of one tree
    DIR/ROOT/*.img     of one of several trees: each in a directory that is named by its root's pid
    stats-dump         beside them: CRIU's figures of the dump, where they are known
    DIR/carried/0 …    the files that CRIU does not keep, in the order of Checkpoint.carried_files
    DIR/saved/0 …      the files that were kept with the memory, in the order of Checkpoint.saved_files
    DIR/volumes/0 …    the images of volumes, in the order of Checkpoint.volumes

Rule: the directory is new, or empty; where the export fails it is as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from ckpt.errors import OsRefused, WrongState
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.reports import StoredCheckpoint
from ckpt.store.refused import FULL, no_space
from ckpt.units import CheckpointId, Pid


class FileSource(Protocol):
    """What this export needs of a store."""

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """The checkpoint."""

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        """Write one of its files to `path`, verified."""


def export_criu(
    source: FileSource,
    checkpoint: CheckpointId,
    directory: str,
    *,
    statistics: Mapping[Pid, bytes],
    finish: Callable[[str], object],
) -> None:
    """Write the checkpoint's files into `directory`.

    Args:
        source: The store.
        checkpoint: What is exported.
        directory: One that is empty, or not there.
        statistics: CRIU's stats-dump of each tree, where it is known.
        finish: Called with the directory of each image set when it is whole; what it raises fails the export.

    Raises:
        WrongState: the directory is not empty.
        OsRefused, NoSpace: it cannot be written.
        ObjectMissing, ObjectCorrupt: the checkpoint is not whole.
    """
    stored = source.load(checkpoint).checkpoint
    with _new(directory):
        for root, place in image_directories(stored, directory).items():
            os.makedirs(place, exist_ok=True)
            if root in statistics:
                with open(f"{place}/stats-dump", "wb") as file:
                    file.write(statistics[root])
        for images in stored.image_sets:
            place = image_directories(stored, directory)[images.root]
            for image in images.files:
                source.fetch(checkpoint, image, f"{place}/{image.name}")
            finish(place)
        for name, contents in _beside(stored):
            os.mkdir(f"{directory}/{name}")
            for number, content in enumerate(contents):
                source.fetch(checkpoint, content, f"{directory}/{name}/{number}")


def _beside(checkpoint: Checkpoint) -> Iterator[tuple[str, list[StoredFile]]]:
    """What stands beside the images: the names of the directories that are needed, and what is in each."""
    for name, kept in (
        ("carried", checkpoint.carried_files),
        ("saved", checkpoint.saved_files),
        ("volumes", checkpoint.volumes),
    ):
        if kept:
            yield name, [each.content for each in kept]


def image_directories(checkpoint: Checkpoint, directory: str) -> dict[Pid, str]:
    """From the root of each tree to the directory of its images, in the order of the trees."""
    if len(checkpoint.image_sets) == 1:
        return {checkpoint.image_sets[0].root: directory}
    return {images.root: f"{directory}/{images.root}" for images in checkpoint.image_sets}


@contextmanager
def _new(directory: str) -> Iterator[None]:
    was_there = os.path.isdir(directory)
    try:
        if was_there and os.listdir(directory):
            raise WrongState(
                subject=directory,
                state="not empty",
                operation="an export in CRIU's format",
                needed="to be empty, or not to be there",
                remedy="Name another directory.",
            )
        if not was_there:
            os.mkdir(directory, 0o700)
        try:
            yield
        except BaseException:
            _empty(directory)
            if not was_there:
                os.rmdir(directory)
            raise
    except OSError as error:
        if error.errno in FULL:
            full = no_space(os.path.dirname(os.path.abspath(directory)), 0)
            full.option = "another directory"
            raise full from error
        raise OsRefused(operation="write", subject=directory, reason=error.strerror or str(error)) from error


def _empty(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
