"""What has come of one workload: its pages and images, its files, and what the source said of it at last.

    DIRECTORY/images/       see images.py
    DIRECTORY/files/        see ckpt.host.shipping.received
    DIRECTORY/checkpoint    the checkpoint as a manifest; it is nowhere filed
    DIRECTORY/absent        the paths at which no file may be found, as JSON
    DIRECTORY/made          the directories that are made where they are missing, as JSON
    DIRECTORY/pages.lazy    there if memory was to follow; who brings it listens at DIRECTORY/pages

Rule: what a restore is given comes from here alone, so that it can be repeated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ckpt.codec.migration_messages import AskFile, FileBlocks, FileKnown, ImageFile
from ckpt.codec.names import refuse_absolute_path
from ckpt.codec.objects import MANIFEST
from ckpt.errors import ObjectCorrupt, ObjectMissing, WrongState
from ckpt.host import sparse_copy
from ckpt.host.journal import sync_directory
from ckpt.host.lazy.places import is_lazy, socket_in
from ckpt.host.received.durable import writing
from ckpt.host.received.images import ReceivedImages
from ckpt.host.shipping.received import ReceivedFiles
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.moves import extra_files, extra_name
from ckpt.model.pages import PageRun
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.shipping import ShippedDirectory, content_name, number_in
from ckpt.units import ByteCount, CheckpointId, Pid

_CHECKPOINT: Final = "checkpoint"
_ABSENT: Final = "absent"
_MADE: Final = "made"
_CHECKPOINT_BYTES_MAX: Final = 256 << 20


class ReceivedWorkload:
    """Fits the port `Received` of ckpt.flow.receive."""

    def __init__(self, directory: str) -> None:
        """Open what is in the directory, which exists."""
        self._directory = directory
        self._images = ReceivedImages(f"{directory}/images")
        self._files = ReceivedFiles(f"{directory}/files")
        self._counted = 0

    @property
    def has_pages(self) -> bool:
        """Whether something came in an earlier attempt."""
        return next(iter(self._images.known()), None) is not None

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Keep pages of memory."""
        self._images.pages(space, runs, content)

    def end_round(self) -> ByteCount:
        """A round is over; gives what came in it."""
        self._images.end_round()
        total = self._images.received_bytes + self._files.received_bytes
        came, self._counted = total - self._counted, total
        return ByteCount(came)

    def known(self) -> Iterator[tuple[str, Sequence[PageRun], bytes]]:
        """The pages that are here, with the SHA-256 of each."""
        return self._images.known()

    def image_file(self, file: ImageFile, content: memoryview) -> None:
        """Keep a piece of an image file."""
        self._images.write_file(file.root, file.name, file.mode, file.offset, content)

    def ask_file(self, ask: AskFile) -> tuple[FileKnown, bytes]:
        """What is here at a path, and the digests of its blocks."""
        known = self._files.offer(ask.number, ask.path)
        if known is None:
            return FileKnown(number=ask.number, is_there=False, file_bytes=0), b""
        return FileKnown(number=ask.number, is_there=True, file_bytes=known.size), known.digests

    def file_blocks(self, blocks: FileBlocks, content: memoryview) -> None:
        """Keep blocks of a file."""
        self._files.blocks(blocks.number, blocks.path, blocks.file_bytes, blocks.first_block, content)

    def begin_settling(
        self, checkpoint: Checkpoint, absent: Sequence[str], made: Sequence[ShippedDirectory] = ()
    ) -> Callable[[], None]:
        """Begin to make all of it durable, with the checkpoint; what is given returns when it is, or raises."""
        for path in (*absent, *(directory.path for directory in made)):
            if reason := refuse_absolute_path(path):
                raise ObjectCorrupt(kind="path", name=repr(path[:80]), reason=reason)
        # What breaks a rule of the format is refused here.
        self._write(_CHECKPOINT, MANIFEST.encode(checkpoint))
        self._write(_ABSENT, json.dumps(list(absent)).encode())
        self._write(_MADE, json.dumps([dataclasses.asdict(directory) for directory in made]).encode())
        failed: list[Exception] = []

        def settle() -> None:
            try:
                self._images.settle()
                self._files.settle()
                sync_directory(self._directory)
            except Exception as error:  # noqa: BLE001 - told where it is waited for
                failed.append(error)

        # The disk has time while CRIU restores.
        thread = threading.Thread(target=settle, name="settle", daemon=True)
        thread.start()

        def settled() -> None:
            thread.join()
            if failed:
                raise failed[0]

        return settled

    def refuse_lost_pages(self) -> None:
        """Nothing, if a restore can have all memory.

        Raises:
            WrongState: the memory was to follow, and nobody brings it any more.
        """
        # Who brings it serves one restore, and has given up with that.
        if is_lazy(self._directory):
            raise WrongState(
                subject="The workload",
                state="without the memory that was to follow it",
                operation="letting it go",
                needed="to have all of it",
                remedy="It is lost: the source no longer serves its memory. Drop what is left: on the target 'ckpt recover"
                " --decide ID=abort', then on the source 'ckpt recover --decide ID=commit'.",
            )

    def source(self) -> ReceivedCheckpoint:
        """The checkpoint that came, for a restore.

        Raises:
            ObjectMissing, ObjectCorrupt: it is not whole.
        """
        checkpoint = MANIFEST.decode(self._read(_CHECKPOINT), _CHECKPOINT)
        absent = tuple(map(str, json.loads(self._read(_ABSENT))))
        made = tuple(
            ShippedDirectory(
                path=str(each["path"]), mode=int(each["mode"]), uid=int(each["uid"]), gid=int(each["gid"])
            )
            for each in json.loads(self._read(_MADE))
        )
        pages_from = socket_in(self._directory) if is_lazy(self._directory) else ""
        return ReceivedCheckpoint(
            self._directory,
            self._images,
            self._files,
            checkpoint,
            absent=absent,
            made=made,
            pages_from=pages_from,
        )

    def close(self) -> None:
        """Let go of it; what came stays."""
        self._images.close()
        self._files.close()

    def remove(self) -> None:
        """Remove all that came."""
        self._images.remove()
        self._files.remove()

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self._directory}/{name}", "rb") as stream:
                return stream.read(_CHECKPOINT_BYTES_MAX)
        except FileNotFoundError:
            raise ObjectMissing(place=self._directory, kind="file", name=name) from None

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._directory}/{name}"
        with writing(self._directory, len(content)):
            with open(path + ".new", "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(path + ".new", path)


class ReceivedCheckpoint:
    """A checkpoint that has come, as a restore wants it. Fits the port `CheckpointSource`."""

    def __init__(
        self,
        directory: str,
        images: ReceivedImages,
        files: ReceivedFiles,
        checkpoint: Checkpoint,
        *,
        absent: tuple[str, ...],
        made: tuple[ShippedDirectory, ...],
        pages_from: str,
    ) -> None:
        self.absent: Final = absent
        """Paths at which no file may be found."""
        self.made: Final = made
        """Directories that are made where they are missing."""
        self.pages_from: Final = pages_from
        """The socket of who brings the pages that the images lack; "" where they lack none."""
        self._directory = directory
        self._images = images
        self._files = files
        self._checkpoint = checkpoint
        self._extra = {file.root: number for number, file in enumerate(extra_files(checkpoint))}
        # They are mounted, and changed by that: what came must stay as it is.
        self._volumes = {volume.content.root for volume in checkpoint.volumes}
        self._laid_out: set[str] = set()

    def resolve(self, ref: str) -> CheckpointId:
        """What messages call it: the migration's id."""
        return CheckpointId(ref)

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """What the source said of it."""
        return StoredCheckpoint(
            id=checkpoint, checkpoint=self._checkpoint, tags=(), stored_bytes=ByteCount(0)
        )

    def check_trust(self, checkpoint: CheckpointId) -> None:
        """Nothing: who sends it has logged in here as somebody who may run anything."""

    def fetch(self, _checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        """Put a file to where a restore wants it; the first one of an image set brings all of them.

        Raises:
            ObjectCorrupt: something did not come, or not as the source has it.
            OsRefused, NoSpace: it cannot be read or written.
        """
        if (number := number_in(file.name)) is not None:
            self._bring_shipped(number, path)
        elif (extra := self._extra.get(file.root)) is not None:
            place = f"{self._directory}/images/files/0/{extra_name(extra)}"
            with writing(os.path.dirname(path), file.size_bytes):
                if file.root in self._volumes:
                    _copy_durably(place, file.size_bytes, path)
                else:
                    os.symlink(place, path)
        else:
            self._bring_images(os.path.dirname(path))

    def _bring_shipped(self, number: int, path: str) -> None:
        saved = [each for each in self._checkpoint.saved_files if number_in(each.content.name) == number]
        if not saved:
            raise ObjectCorrupt(kind="file", name=content_name(number), reason="it belongs to no file")
        _, place = self._files.contents(saved)[0]
        with writing(os.path.dirname(path)):
            os.symlink(place, path)

    def _bring_images(self, directory: str) -> None:
        if directory in self._laid_out:
            return
        root = os.path.basename(directory)
        for images in self._checkpoint.image_sets:
            if str(images.root) == root:
                names = [file.name for file in images.files if not file.name.startswith("pages-")]
                self._images.lay_out(Pid(images.root), directory, names)
                self._laid_out.add(directory)
                return
        raise ObjectCorrupt(kind="image set", name=root, reason="there is none of this name")


def _copy_durably(source: str, size: int, copy: str) -> None:
    with open(source, "rb") as stream:
        sparse_copy.copy_frozen(stream.fileno(), size, copy)
    with open(copy, "rb") as stream:
        os.fsync(stream.fileno())
