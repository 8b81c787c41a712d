"""The volumes of this host's jobs, as the flows need them."""

from __future__ import annotations

from contextlib import suppress

from ckpt.errors import NoSuchTarget, ObjectCorrupt
from ckpt.host.jobs import JobRegistry
from ckpt.host.operations import JournaledOperation
from ckpt.host.volumes import dumping
from ckpt.host.volumes.book import Book, VolumeRecord
from ckpt.host.volumes.bringing import BroughtVolumes
from ckpt.model.checkpoint import Volume
from ckpt.model.target import Target
from ckpt.units import JobName, Pid


class HostVolumes:
    """The volumes of this host's jobs. Fits the port `Volumes`."""

    def __init__(self, state: str, jobs: JobRegistry) -> None:
        """Keep them below the directory `state`; the registry tells which jobs run."""
        self._state = state
        self._jobs = jobs

    def write_out(self, target: Target) -> None:
        """Write out what is dirty on the target's volumes, so that little is left for the time of the freeze.

        Raises:
            CannotCheckpoint: a volume is not mounted where it belongs.
        """
        for job in self._jobs_in(target):
            dumping.write_out(Book(self._state), job)

    def images(self, target: Target) -> tuple[tuple[VolumeRecord, str], ...]:
        """The volumes of a target, each with the path of its image."""
        book = Book(self._state)
        return tuple(
            (record, f"{book.directory(job)}/{record.image}")
            for job in self._jobs_in(target)
            for record in book.of(job)
        )

    def copy_frozen(self, target: Target, operation: object) -> tuple[tuple[Volume, str], ...]:
        """Copy the volumes of a target that stands still into the operation's staging; each with its copy's path.

        Args:
            target: A job, or a workload that is one.
            operation: One that JournaledOperations began (an `object`, as a port's adapter must take any).

        Raises:
            NoSpace: the staging area is full.
            OsRefused: a volume cannot be frozen or read.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        book = Book(self._state)
        return tuple(
            copied for job in self._jobs_in(target) for copied in dumping.copy_frozen(book, job, operation)
        )

    def bring(
        self, *, ref: str, job: JobName, volumes: tuple[Volume, ...], operation: object
    ) -> BroughtVolumes:
        """Make room for the volumes of a checkpoint that will be restored as this job.

        Raises:
            HostMismatch: a volume cannot be mounted at its place.
            WrongState: the job runs.
            Locked: another ckpt process is at the job's volumes.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        return BroughtVolumes(
            state=self._state, jobs=self._jobs, ref=ref, job=job, volumes=volumes, operation=operation
        )

    def _jobs_in(self, target: Target) -> tuple[JobName, ...]:
        """The jobs with volumes that the target is, however it was named."""
        if target.job is not None:
            return (target.job,)
        return tuple(job for job in Book(self._state).jobs() if self._root_of(job) in target.roots)

    def _root_of(self, job: JobName) -> Pid | None:
        """The root process of a job that runs."""
        with suppress(NoSuchTarget, ObjectCorrupt):
            view = self._jobs.look(job)
            return view.record.root.pid if view.is_alive else None
        return None
