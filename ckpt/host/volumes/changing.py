"""Put a job's new volumes in the place of its former ones, and take that back: now, or after a crash.

Rules:
- What is on the disk tells by itself how far a change came, so that taking back is repeatable: the former
  images are aside (book.py, `.JOB.old`) exactly as long as the new ones are on trial.
- The step in the operation's journal is noted before anything is touched, and forgotten when all is settled.
- If the controller died after the workload had come to life, the change is settled, not taken back.
- Only the standard library and small modules are imported: the guardian loads this module.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress

from ckpt.errors import NoSuchTarget, ObjectCorrupt
from ckpt.host import journal
from ckpt.host.jobs import JobRegistry
from ckpt.host.locks import exclusive
from ckpt.host.volumes import mounting
from ckpt.host.volumes.book import Book, VolumeRecord
from ckpt.units import DeviceNumber, JobName


def locked(state: str, job: JobName) -> AbstractContextManager[None]:
    """Keep other ckpt processes off the job's volumes.

    Raises:
        Locked: one of them is at it; names its pid.
    """
    return exclusive(f"{state}/locks", [f"volumes-{job}"], subject=f"A volume of job {job}")


def step_for(state: str, job: JobName) -> journal.VolumesChanging:
    """The step that says how the job's volumes are now."""
    book = Book(state)
    records = book.of(job)
    directory = book.directory(job)
    return journal.VolumesChanging(
        state=state,
        job=job,
        had_former=bool(records),
        mounted=any(mounting.device_of(directory, record) is not None for record in records),
    )


def change(state: str, job: JobName) -> tuple[DeviceNumber, ...]:
    """Mount what lies in the directory for new images, in place of what the job had.

    Returns:
        The device numbers that the volumes got, in their order.

    Raises:
        WrongState: a former volume is in use.
        OsRefused, FeatureMissing: this host cannot; call take_back().
    """
    book = Book(state)
    directory = book.directory(job)
    for record in book.of(job):
        mounting.unmount(directory, record)
    if os.path.isdir(directory):
        book.move(directory, book.old(job))
    book.move(book.new(job), directory)
    return tuple(mounting.mount(directory, record) for record in book.of(job))


def settle(state: str, job: JobName) -> None:
    """The change is to stay: drop what the job had before. Never fails."""
    book = Book(state)
    kept: tuple[VolumeRecord, ...] = ()
    former: tuple[VolumeRecord, ...] = ()
    with suppress(ObjectCorrupt, OSError):
        kept, former = book.of(job), book.read(book.old(job))
    places = {record.mountpoint for record in kept}
    for record in former:
        if record.mountpoint not in places:
            mounting.remove_place(record)
    with suppress(OSError):
        book.discard(book.old(job))
        book.discard(book.new(job))


def take_back(step: journal.VolumesChanging) -> None:
    """Leave the job's volumes as they were when the step was noted; safe to repeat.

    Raises:
        WrongState, OsRefused: something could not be unmounted or mounted again.
    """
    job = JobName(step.job)
    book = Book(step.state)
    directory = book.directory(job)
    aside = os.path.isdir(book.old(job))
    if aside or not step.had_former:
        drop(step.state, job)
    if aside:
        book.move(book.old(job), directory)
    book.discard(book.new(job))
    if step.mounted:
        for record in book.of(job):
            mounting.mount(directory, record)


def drop(state: str, job: JobName) -> None:
    """Unmount the job's volumes, and delete their images.

    Raises:
        WrongState: one is in use; all are still there.
        OsRefused: one could not be unmounted.
    """
    book = Book(state)
    directory = book.directory(job)
    records = book.of(job)
    for record in reversed(records):
        mounting.unmount(directory, record)
    for record in reversed(records):
        mounting.remove_place(record)
    book.discard(directory)


def finish(step: journal.VolumesChanging) -> str:
    """End a change that was under way: settled if it has succeeded, else taken back; says what was done, in words.

    Raises:
        WrongState, OsRefused: as take_back().
    """
    job = JobName(step.job)
    if step.committed or _lives(step):
        settle(step.state, job)
        return ""
    take_back(step)
    return "left its volumes as they were before"


def _lives(step: journal.VolumesChanging) -> bool:
    with suppress(NoSuchTarget, ObjectCorrupt):
        return JobRegistry(step.state).look(JobName(step.job)).is_alive
    return False
