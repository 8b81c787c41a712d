"""The volumes of a job from its first start to its removal.

Rules:
- A volume lives as long as its job is known: the end of the job's processes does not end it.
- A job that is started again finds its volumes as it left them; it gets others only after it was removed.
- Volumes that were made for a start that failed are removed again, also if its controller is killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ckpt.errors import NoSuchTarget, ObjectCorrupt, Usage, WrongState
from ckpt.host import recovery
from ckpt.host.jobs import JobRegistry
from ckpt.host.operations import JournaledOperations
from ckpt.host.volumes import changing, image, loop, mounting
from ckpt.host.volumes.book import VOLUMES_MAX, Book, VolumeRecord
from ckpt.host.volumes.places import missing_directories, refuse_place
from ckpt.units import ByteCount, JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedVolume:
    """A volume that a job shall have; `size` None takes the default, or that of the volume that it has."""

    mountpoint: str
    size: ByteCount | None


@contextmanager
def provided(state: str, job: JobName, wanted: tuple[WantedVolume, ...]) -> Iterator[tuple[str, ...]]:
    """Mount the job's volumes, and make those that it has not got; what was done is undone on an error.

    Gives the mounts that are not the job's to see: the volumes of all others.

    Raises:
        Usage: a place or a size that cannot be.
        WrongState: the job has other volumes than these.
        Locked: another ckpt process is at the job's volumes.
        FeatureMissing, NoSpace, OsRefused, CommandFailed: this host cannot.
    """
    book = Book(state)
    if not wanted and not book.of(job):
        yield mounting.strange_mounts(())
        return
    with ExitStack() as held, changing.locked(state, job):
        recovery.recover_dead(state)
        _check_sizes(wanted)
        if records := book.of(job):
            _refuse_others(book, job, records, wanted)
            held.enter_context(_mounted_again(book, job, records))
        else:
            held.enter_context(_made(state, book, job, wanted))
        yield mounting.strange_mounts(tuple(record.mountpoint for record in book.of(job)))


def remove(state: str, registry: JobRegistry, job: JobName) -> None:
    """Unmount and delete the volumes of a job that does not run; nothing if it has none.

    Raises:
        WrongState: the job runs, or a volume is in use.
        Locked: another ckpt process is at them.
        OsRefused: the kernel refuses.
    """
    if not os.path.isdir(Book(state).directory(job)):
        return
    with changing.locked(state, job):
        recovery.recover_dead(state)
        with suppress(NoSuchTarget, ObjectCorrupt):
            view = registry.look(job)
            if view.is_alive:
                raise WrongState(
                    subject=f"Job {job}",
                    state=view.state,
                    operation="removing its volumes",
                    needed="ended",
                    remedy=f"Run 'ckpt stop {job}' first.",
                )
        changing.drop(state, job)


def _check_sizes(wanted: tuple[WantedVolume, ...]) -> None:
    if len(wanted) > VOLUMES_MAX:
        raise Usage(problem=f"{len(wanted)} volumes are more than the {VOLUMES_MAX} that a job can have.")
    for each in wanted:
        if each.size is not None and not image.SIZE_MIN <= each.size <= image.SIZE_MAX:
            raise Usage(
                problem=f"A volume of {each.size} bytes cannot be made.",
                remedy="A volume has 16M at least, and 16384G at most.",
            )


def _refuse_others(
    book: Book, job: JobName, records: tuple[VolumeRecord, ...], wanted: tuple[WantedVolume, ...]
) -> None:
    """Refuse volumes that are not those that the job has."""
    sizes = {
        record.mountpoint: os.path.getsize(f"{book.directory(job)}/{record.image}") for record in records
    }
    for each in wanted:
        if each.mountpoint not in sizes:
            state = "without a volume at " + each.mountpoint
        elif each.size is not None and each.size != sizes[each.mountpoint]:
            state = f"known with a volume of {sizes[each.mountpoint]} bytes at {each.mountpoint}"
        else:
            continue
        raise WrongState(
            subject=f"Job {job}",
            state=state,
            operation="this start",
            needed="to be a new one",
            remedy=f"'ckpt rm-job {job}' forgets it, and deletes its volumes.",
        )


@contextmanager
def _mounted_again(book: Book, job: JobName, records: tuple[VolumeRecord, ...]) -> Iterator[None]:
    directory = book.directory(job)
    with ExitStack() as undo:
        for record in records:
            if mounting.device_of(directory, record) is None:
                undo.callback(mounting.unmount, directory, record)
                mounting.mount(directory, record)
        yield
        undo.pop_all()


@contextmanager
def _made(state: str, book: Book, job: JobName, wanted: tuple[WantedVolume, ...]) -> Iterator[None]:
    _refuse_places(state, book, wanted)
    with ExitStack() as undo:
        operation = JournaledOperations(state).begin(f"start of job {job}")
        undo.callback(operation.end)
        operation.guard()
        step = changing.step_for(state, job)
        operation.await_guardian()
        operation.note(step)
        try:
            _make_images(book, job, wanted)
            changing.change(state, job)
            operation.note_phase("mounted")
            for each in wanted:
                # Empty is what people expect; e2fsck makes it again if it ever needs it.
                with suppress(OSError):
                    os.rmdir(f"{each.mountpoint}/lost+found")
            yield
        except BaseException:
            changing.take_back(step)
            raise
        changing.settle(state, job)
        operation.forget(step)


def _make_images(book: Book, job: JobName, wanted: tuple[WantedVolume, ...]) -> None:
    directory = book.make_new(job)
    records = tuple(
        VolumeRecord(
            mountpoint=each.mountpoint,
            filesystem=image.FILESYSTEM,
            image=f"{number}.img",
            device=loop.number_for(job, each.mountpoint),
            made=missing_directories(each.mountpoint),
        )
        for number, each in enumerate(wanted)
    )
    book.write(directory, records)
    for each, record in zip(wanted, records, strict=True):
        uid, gid = _owner(each.mountpoint)
        image.make(f"{directory}/{record.image}", each.size or image.SIZE_DEFAULT, uid=uid, gid=gid)


def _owner(place: str) -> tuple[int, int]:
    """Whose directory it is, if it is there."""
    try:
        status = os.stat(place)
    except OSError:
        return 0, 0
    return status.st_uid, status.st_gid


def _refuse_places(state: str, book: Book, wanted: tuple[WantedVolume, ...]) -> None:
    taken = [record.mountpoint for job in book.jobs() for record in book.of(job)]
    for each in wanted:
        if reason := refuse_place(each.mountpoint, state=state, taken=taken):
            raise Usage(
                problem=f"No volume can be mounted there: {reason}.",
                remedy="Name a directory that is empty, or does not exist; copy files into it from within the job.",
            )
        taken.append(each.mountpoint)
