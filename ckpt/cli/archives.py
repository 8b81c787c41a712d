"""Exports and imports, put together from the store's formats and what the host knows of CRIU's images.

Rule: of what others made nothing reaches the store before somebody vouches for it: a trusted key by its
signature, or the operator by --unsigned.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt.cli import wiring
from ckpt.codec.objects import MANIFEST, checkpoint_id
from ckpt.codec.records import Signature
from ckpt.errors import Untrusted
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.by_hand import count_pages_as_before, restore_commands, stats_dump
from ckpt.host.criu.foreign import describe, image_names
from ckpt.host.resuming import mend_for_criu
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.model.reports import TransferReport
from ckpt.store.archive import ArchiveReader, export_archive, import_archive
from ckpt.store.archive_criu import export_criu, image_directories
from ckpt.store.archive_place import STANDARD, Write, reading, writing
from ckpt.store.archive_podman import export_podman
from ckpt.store.signing import check_signatures, is_valid
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote: `commands` restore without ckpt, `warnings` say what is lost.

    `archive_bytes` is None where it is no archive.
    """

    image_bytes: ByteCount
    archive_bytes: ByteCount | None
    commands: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]


def export(store: Store, checkpoint: CheckpointId, file: str, form: str) -> Exported:
    """Write the checkpoint to the file, or for "criu" into the directory.

    Raises:
        Usage, WrongState: the format or the place does not suit it.
        OsRefused, NoSpace: the place cannot be written; nothing remains there.
        StoreError: the checkpoint is not whole.
    """
    stored = store.load(checkpoint).checkpoint
    kept = stored.image_sets[0].files if form == "podman" else stored.files
    store.progress.expect(sum(file.size_bytes for file in kept))
    figures = {
        images.root: stats_dump(images.statistics)
        for images in stored.image_sets
        if images.statistics is not None
    }
    commands: tuple[tuple[str, ...], ...] = ()
    counted: _Counted | None = None
    if form == "criu":
        directory = os.path.abspath(file)
        export_criu(
            store,
            checkpoint,
            directory,
            statistics=figures,
            # As ckpt's own restore does: CRIU alone would lose the timers that it restores wrongly.
            finish=lambda images: mend_for_criu(Path(images)),
        )
        places = image_directories(stored, directory)
        commands = tuple(
            words
            for tree in stored.workload.trees
            for words in restore_commands(stored, tree, places[tree.root])
        )
    elif form == "podman":
        statistics = next(iter(figures.values()), None)
        with writing(file) as write:
            counted = _Counted(write)
            rewritten = _rewritten(store, checkpoint, stored)
            export_podman(store, checkpoint, counted.write, statistics=statistics, rewritten=rewritten)
    else:
        with writing(file) as write:
            counted = _Counted(write)
            export_archive(store, checkpoint, counted.write)
    return Exported(
        image_bytes=stored.image_bytes,
        archive_bytes=None if counted is None else ByteCount(counted.written),
        commands=commands,
        warnings=_losses(stored, file, form),
    )


def take_archive(
    place: str, file: str, *, unsigned: bool, progress: Progress = UNWATCHED
) -> tuple[TransferReport, Store]:
    """Take an archive of ckpt's into the store at `place`; gives the opened store too.

    Raises:
        Untrusted: nobody vouches for it; nothing was written.
        FormatUnknown, ObjectCorrupt: it is none, or not whole; nothing remains.
        OsRefused: it cannot be read.
        StoreError: what the store says.
    """
    with reading(file) as read:
        archive = ArchiveReader(read, "from the standard input" if file == STANDARD else file)
        progress.expect(sum(each.size_bytes for each in archive.checkpoint.files))
        opened = _Opened(place, progress)
        report = import_archive(archive, opened.open, _vouched if unsigned else _judge(file))
    return report, opened.store


def take_images(
    place: str,
    directory: str,
    *,
    job: JobName | None,
    unsigned: bool,
    progress: Progress = UNWATCHED,
) -> tuple[TransferReport, Store]:
    """Take a directory of CRIU's images into the store at `place`; gives the opened store too.

    Raises:
        Untrusted: the operator does not vouch for it.
        FormatUnknown, ObjectCorrupt, OsRefused: it is none, or not whole; nothing remains.
        StoreError: what the store says.
    """
    if not unsigned:
        raise Untrusted(
            checkpoint=f"in {directory}",
            reason="images of CRIU have no signature, and to restore them is to run their code",
            remedy=f"If you know where they come from: ckpt import --unsigned {directory}",
        )
    folder = Path(directory).resolve()
    foreign = describe(folder, job=job, message=f"imported from {folder}")
    checkpoint = foreign.checkpoint
    store = wiring.open_store(place)
    store.progress = progress
    with store.writer() as writer:
        with suppress(OSError):  # the writer will say what is wrong
            progress.expect(
                sum(
                    os.stat(images / name).st_size
                    for images in foreign.directories
                    for name in image_names(images)
                )
            )
        sets = []
        for images, images_folder in zip(checkpoint.image_sets, foreign.directories, strict=True):
            addresses = page_addresses(images_folder)
            files = tuple(
                writer.add_file(str(images_folder / name), name, addresses.get(name, ()))
                for name in image_names(images_folder)
            )
            sets.append(replace(images, files=files))
        whole = replace(checkpoint, image_sets=tuple(sets))
        was_there = store.has(checkpoint_id(MANIFEST.encode(whole)))
        found = writer.commit(whole)
    return (
        TransferReport(
            id=found,
            image_bytes=whole.image_bytes,
            new_bytes=writer.new_bytes,
            stored_bytes=writer.stored_bytes,
            was_there=was_there,
        ),
        store,
    )


def _rewritten(store: Store, checkpoint: CheckpointId, stored: Checkpoint) -> dict[str, bytes]:
    """The page maps, in the form that checkpointctl reads."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="ckpt-") as folder:
        for file in stored.image_sets[0].files:
            if file.name.startswith("pagemap-"):
                path = Path(folder) / file.name
                store.fetch(checkpoint, file, str(path))
                count_pages_as_before(path)
                found[file.name] = path.read_bytes()
    return found


class _Counted:
    """Counts what is written."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.written = 0

    def write(self, content: bytes) -> None:
        """Write it all."""
        self._write(content)
        self.written += len(content)


class _Opened:
    """A store that is opened, and made if it is missing, only when something comes into it."""

    def __init__(self, place: str, progress: Progress) -> None:
        self._place = place
        self._progress = progress
        self.store: Store

    def open(self) -> Store:
        """Open it."""
        self.store = wiring.open_store(self._place)
        self.store.progress = self._progress
        return self.store


def _vouched(_checkpoint: CheckpointId, _signatures: tuple[Signature, ...]) -> tuple[Signature, ...]:
    """The operator vouches for it: the store signs it with this host's key."""
    return ()


def _judge(file: str) -> Callable[[CheckpointId, tuple[Signature, ...]], tuple[Signature, ...]]:
    """What judges the signatures of an archive, and keeps those that are right."""

    def judge(checkpoint: CheckpointId, signatures: tuple[Signature, ...]) -> tuple[Signature, ...]:
        valid = tuple(each for each in signatures if each.checkpoint == checkpoint and is_valid(each))
        try:
            check_signatures(checkpoint, valid, wiring.key_ring())
        except Untrusted as error:
            if not valid:
                error.remedy = f"If you know where it comes from: ckpt import --unsigned {file}"
            raise
        return valid

    return judge


def _losses(checkpoint: Checkpoint, file: str, form: str) -> tuple[str, ...]:
    """What another tool cannot bring back of this checkpoint, in sentences."""
    places = (
        *(("carried", number, each.path) for number, each in enumerate(checkpoint.carried_files)),
        *(("saved", number, each.path) for number, each in enumerate(checkpoint.saved_files)),
        *(("volumes", number, each.mountpoint) for number, each in enumerate(checkpoint.volumes)),
    )
    if form == "tar" or not places:
        return ()
    if form == "podman":
        return (f"{len(places)} file(s) that the workload needs are not in it, the first is {places[0][2]}",)
    return tuple(
        f"before it is restored without ckpt, {file}/{name}/{number} must be "
        + (f"mounted at {path}" if name == "volumes" else f"at {path}")
        for name, number, path in places
    )
