"""Bring the volumes of a checkpoint back for a restore.

Rules: everything is judged before anything is touched; the former volumes of the job are put aside, and come
back if the restore fails (changing.py).
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from ckpt.errors import HostMismatch
from ckpt.host import journal
from ckpt.host.jobs import JobRegistry, check_name
from ckpt.host.operations import JournaledOperation
from ckpt.host.volumes import changing, mounting
from ckpt.host.volumes.book import VOLUMES_MAX, Book, VolumeRecord
from ckpt.host.volumes.places import missing_directories, refuse_place
from ckpt.model.checkpoint import StoredFile, Volume
from ckpt.model.inodes import Difference, FileChange
from ckpt.units import JobName


class BroughtVolumes:
    """The volumes of one restore. Fits the port `BroughtVolumes`."""

    def __init__(
        self,
        *,
        state: str,
        jobs: JobRegistry,
        ref: str,
        job: JobName,
        volumes: tuple[Volume, ...],
        operation: JournaledOperation,
    ) -> None:
        """Judge the volumes and make room for their images; without any, nothing happens here or later.

        Raises:
            HostMismatch: a volume cannot be mounted at its place.
            WrongState: the job runs.
            Locked: another ckpt process is at the job's volumes.
        """
        self._state = state
        self._job = check_name(job)
        self._volumes = volumes
        self._operation = operation
        self._step: journal.VolumesChanging | None = None
        self._held = ExitStack()
        self.images: tuple[tuple[StoredFile, str], ...] = ()
        if not volumes:
            return
        try:
            self._held.enter_context(changing.locked(state, self._job))
            jobs.refuse_running(self._job)
            self._prepare(ref)
        except BaseException:
            self.undo()
            self.close()
            raise

    def attach(self) -> tuple[FileChange, ...]:
        """Mount the images that were fetched; what of the device numbers is not as recorded.

        Raises:
            WrongState: a former volume of the job is in use.
            OsRefused, FeatureMissing: this host cannot; call undo().
        """
        if self._step is None:
            return ()
        devices = changing.change(self._state, self._job)
        return tuple(
            FileChange(
                path=volume.mountpoint,
                difference=Difference.DEVICE,
                recorded=_as_text(volume.device),
                found=_as_text(device),
            )
            for volume, device in zip(self._volumes, devices, strict=True)
            if volume.device != device
        )

    def settle(self) -> None:
        """The restore is committed: drop what the job had before. Never fails."""
        if self._step is not None:
            changing.settle(self._state, self._job)
            self._operation.forget(self._step)
            self._step = None

    def undo(self) -> None:
        """Leave the job's volumes as they were found; safe to repeat.

        Raises:
            WrongState, OsRefused: something could not be unmounted or mounted again.
        """
        if self._step is not None:
            changing.finish(self._step)
            self._operation.forget(self._step)
            self._step = None

    def close(self) -> None:
        """Let others at the volumes again; safe to repeat."""
        self._held.close()

    def _prepare(self, ref: str) -> None:
        book = Book(self._state)
        former = {record.mountpoint: record for record in book.of(self._job)}
        self._refuse(ref, book, former)
        step = changing.step_for(self._state, self._job)
        self._operation.await_guardian()
        self._operation.note(step)
        self._step = step
        directory = book.make_new(self._job)
        records = tuple(
            VolumeRecord(
                mountpoint=volume.mountpoint,
                filesystem=volume.filesystem,
                image=f"{number}.img",
                device=volume.device,
                made=missing_directories(volume.mountpoint)
                or (former[volume.mountpoint].made if volume.mountpoint in former else ()),
            )
            for number, volume in enumerate(self._volumes)
        )
        book.write(directory, records)
        self.images = tuple(
            (volume.content, f"{directory}/{record.image}")
            for volume, record in zip(self._volumes, records, strict=True)
        )

    def _refuse(self, ref: str, book: Book, former: dict[str, VolumeRecord]) -> None:
        directory = book.directory(self._job)
        own = {place for place, record in former.items() if mounting.device_of(directory, record) is not None}
        taken = [record.mountpoint for job in book.jobs() if job != self._job for record in book.of(job)]
        reasons: list[str] = []
        for volume in self._volumes[:VOLUMES_MAX]:
            if volume.filesystem not in mounting.FILESYSTEMS:
                reasons.append(
                    f"{volume.mountpoint} is a volume with the unknown file system {volume.filesystem}"
                )
            elif reason := refuse_place(volume.mountpoint, state=self._state, taken=taken, own=own):
                reasons.append(f"a volume cannot be mounted: {reason}")
            taken.append(volume.mountpoint)
        if len(self._volumes) > VOLUMES_MAX:
            reasons.append(f"it has {len(self._volumes)} volumes, and {VOLUMES_MAX} is the most")
        if reasons:
            raise HostMismatch(
                ref=ref,
                reasons=tuple(reasons),
                remedy="A volume needs its place for itself: a directory that is empty, or does not exist.",
            )


def _as_text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
