"""The second rung: on ext4 a copy is made that has the wanted inode number, and takes the file's place.

Rules:
- Regular files, and directories in which nothing is and nobody stands.
- The number is had first and the content copied afterwards: copies that are made before take numbers away.
- What number was got is compared; one that is used, or was taken by somebody quicker, is no number.
- A number that another moved file has is had by filling that very inode anew: one file's copy often got the
  number that the file before it had.
- Device and number only: the generation and the time of birth are the copy's own.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from ckpt.host.inodes import copying
from ckpt.host.inodes.changes import Changes, attempt, temporary_name
from ckpt.host.inodes.goal import LOWEST_NUMBER, Goal, goal_path
from ckpt.host.inodes.ledger import GoalChanged, Ledger, Swapped
from ckpt.host.inodes.moved import MovedFile, identity_of, matches
from ckpt.host.inodes.pindirs import PinDirectories
from ckpt.host.inodes.places import Place, Refused, held_alone, opened_place
from ckpt.host.inodes.refilling import refill
from ckpt.host.inodes.swapping import check_unchanged, compare_names, exchange_names, names_to_swap, swap
from ckpt.host.inspection import syscalls
from ckpt.host.inspection.details import kind_of
from ckpt.model.inodes import FileKind, Identity, InodeMethod

TRIES: Final = 5
"""Beside a process that makes files without a pause one try fails often, five nearly never."""

_READ: Final = os.O_RDONLY | os.O_NOATIME
_NUMBER_AND_GENERATION: Final = (0x01, struct.Struct("=II"))
"""The type of handle that ext4 has; generation 0 stands for any."""


_Key = tuple[int, int]


class NumberTaken(Refused):
    """Another file has the wanted number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"inode number {number} belongs to another file")


class PlacedFiles:
    """Makes copies that have the wanted numbers. Fits the port `Rung`."""

    def __init__(self, state: str, ledger: Ledger) -> None:
        """Note all changes in `ledger`; pins of the state directory `state` count as no other name of a file."""
        self._directories = PinDirectories(state)
        self._changes = Changes(ledger)
        self._noted: set[str] = set()
        self._moved: dict[_Key, str] = {}
        self._copies: dict[str, _Key] = {}
        self._spare: dict[_Key, str] = {}

    @property
    def method(self) -> InodeMethod:
        """What an outcome of it is called."""
        return InodeMethod.PLACED

    def prepare(self, files: Iterable[MovedFile]) -> None:
        """Tell which files are going to be tried: they may lend each other their inodes."""
        self._moved = {identity_of(file.found): file.path for file in files}

    def try_keep(self, file: MovedFile) -> str | None:
        """Put a copy with the wanted number in the file's place; None when that is done, else why not.

        Raises:
            OsRefused: what was begun could not be taken back.
        """
        return attempt(self._keep, file)

    def undo(self) -> None:
        """Take all back; safe to repeat.

        Raises:
            OsRefused: something could not be taken back; all else was.
        """
        self._changes.undo()
        self._forget()

    def settle(self) -> None:
        """Remove what only undo() needed. Never fails; safe to repeat."""
        self._changes.settle()
        self._forget()

    def _forget(self) -> None:
        for memory in (self._noted, self._moved, self._copies, self._spare):
            memory.clear()

    def _keep(self, file: MovedFile) -> None:
        kind = file.record.kind
        if kind not in (FileKind.REGULAR, FileKind.DIRECTORY):
            raise Refused(f"a {kind} is not placed: only regular files and empty directories are")
        with opened_place(file.path) as place:
            now = place.status()
            if matches(now, file.wanted):
                return
            if self._copies.get(file.path) != identity_of(now):
                check_unchanged(file, now)
            if kind_of(now.st_mode) is not kind:
                raise Refused(f"it is a {kind_of(now.st_mode)} now, and was a {kind}")
            _check_number(place, file)
            with self._goal(now.st_dev) as goal:
                if kind is FileKind.REGULAR:
                    self._place_file(goal, place, now, file.wanted)
                else:
                    self._place_directory(goal, place, now, file.wanted.inode)

    def _place_file(self, goal: Goal, place: Place, now: os.stat_result, wanted: Identity) -> None:
        with place.opened(_READ) as source, held_alone(source) as lease:
            _check_plain(source)
            names = names_to_swap(place, now, self._directories.count_of(place, now))
            with self._changes.all_or_none():
                try:
                    with _new_file(goal, place, wanted.inode) as copy:
                        kept = self._swap_in_copy(place, now, source, copy, names)
                except NumberTaken:
                    kept = self._reuse(place, now, source, wanted, names)
                lease.check()
        self._spare.pop((wanted.device, wanted.inode), None)
        if len(kept) == 1:
            self._spare[identity_of(now)] = kept[0]

    def _swap_in_copy(
        self, place: Place, now: os.stat_result, source: int, copy: int, names: list[str]
    ) -> list[str]:
        copying.check_space(place.directory, copying.needed_bytes(source))
        copying.copy_content(source, copy)
        copying.copy_attributes(source, copy)
        # The name comes after the content, also after a power cut.
        os.fsync(copy)
        return swap(place, now, copy, names, self._changes)

    def _reuse(
        self, place: Place, now: os.stat_result, source: int, wanted: Identity, names: list[str]
    ) -> list[str]:
        """Take the inode with the number, which a file had that is moved as well, and fill it anew."""
        path = self._spare.get((wanted.device, wanted.inode)) or self._make_way(wanted)
        with opened_place(path) as spare, spare.opened(os.O_RDWR) as target, held_alone(target) as lease:
            status = os.fstat(target)
            if not matches(status, wanted) or status.st_nlink != 1:
                raise NumberTaken(wanted.inode)
            refill(source, target, spare, self._changes)
            kept = swap(place, now, target, names, self._changes)
            lease.check()
            return kept

    def _make_way(self, wanted: Identity) -> str:
        """Let the moved file that has the number be a copy with another one; gives the path of the former inode."""
        other = self._moved.get((wanted.device, wanted.inode))
        if other is None:
            raise NumberTaken(wanted.inode)
        with opened_place(other) as place:
            now = place.status()
            if not matches(now, wanted) or not stat.S_ISREG(now.st_mode):
                raise NumberTaken(wanted.inode)
            with place.opened(_READ) as source, held_alone(source) as lease, place.unnamed() as copy:
                _check_plain(source)
                names = names_to_swap(place, now, self._directories.count_of(place, now))
                kept = self._swap_in_copy(place, now, source, copy, names)
                lease.check()
                self._copies[other] = identity_of(os.fstat(copy))
            return kept[0]

    def _place_directory(self, goal: Goal, place: Place, now: os.stat_result, number: int) -> None:
        with place.opened(os.O_RDONLY | os.O_DIRECTORY) as former:
            _check_plain(former)
            _check_deserted(former, now)
            with self._changes.all_or_none():
                other = self._new_directory(goal, place, now, number)
                made = replace(place, name=other)
                with made.opened(os.O_RDONLY | os.O_DIRECTORY) as new:
                    copying.copy_attributes(former, new)
                    wanted = os.fstat(new)
                exchange_names(place, other, place.name)
                compare_names(place, place.name, wanted, other, now)
                if os.listdir(former):
                    raise Refused("another process made a file in it meanwhile")

    def _new_directory(self, goal: Goal, place: Place, former: os.stat_result, number: int) -> str:
        """Make an empty directory that has this inode number; gives its temporary name."""
        for _ in range(TRIES):
            other = temporary_name()
            self._changes.note(
                Swapped(path=place.path, other=other, device=former.st_dev, inode=former.st_ino)
            )
            if goal.make(number, partial(_make_directory, place.directory, other)) == number:
                return other
            os.rmdir(other, dir_fd=place.directory)
            _check_unused(place.directory, number)
        raise _not_had(number)

    @contextmanager
    def _goal(self, device: int) -> Iterator[Goal]:
        """The goal of a file system, its former value noted."""
        path = goal_path(device)
        goal = Goal(path)
        try:
            if path not in self._noted:
                self._changes.note(GoalChanged(path=path, former=goal.read()))
                self._noted.add(path)
            yield goal
        finally:
            goal.close()


@contextmanager
def _new_file(goal: Goal, place: Place, number: int) -> Iterator[int]:
    """A new file without a name that has this inode number, open for reading and writing."""
    for _ in range(TRIES):
        fd = goal.make(number, place.make_unnamed)
        try:
            if os.fstat(fd).st_ino == number:
                yield fd
                return
        finally:
            os.close(fd)
        _check_unused(place.directory, number)
    raise _not_had(number)


def _make_directory(parent: int, name: str) -> int:
    os.mkdir(name, mode=0o700, dir_fd=parent)
    return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino


def _check_plain(fd: int) -> None:
    if copying.is_special(fd):
        raise Refused("it is immutable, append-only, encrypted or sealed")


def _check_deserted(directory: int, status: os.stat_result) -> None:
    """Nothing, if the directory is empty and no process is in it.

    Raises:
        Refused: it is not.
    """
    if os.listdir(directory):
        raise Refused("a directory that holds files cannot be made anew")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if int(pid) != os.getpid() and _holds(pid, status):
            raise Refused(f"process {pid} is in it")


def _holds(pid: str, status: os.stat_result) -> bool:
    with suppress(OSError):  # it has ended
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
        for link in links:
            with suppress(OSError):
                if os.path.samestat(os.stat(link), status):
                    return True
    return False


def _check_number(place: Place, file: MovedFile) -> None:
    """Nothing, if a file there could have this number.

    Raises:
        Refused: it could not.
    """
    device = os.fstat(place.directory).st_dev
    goal_path(device)
    if file.found.st_dev != device:
        raise Refused("something is mounted on it")
    if file.wanted.device != device:
        raise Refused(
            f"it was on device {_text(file.wanted.device)}, and its file system is {_text(device)} here"
        )
    numbers = os.fstatvfs(place.directory).f_files
    if not LOWEST_NUMBER <= file.wanted.inode <= numbers:
        raise Refused(f"inode number {file.wanted.inode} is not one of {LOWEST_NUMBER} to {numbers}")


def _check_unused(directory: int, number: int) -> None:
    """Nothing, if no file has this number, nor an open one without a name: another try may succeed.

    Raises:
        NumberTaken: one has.
    """
    kind, layout = _NUMBER_AND_GENERATION
    try:
        fd = syscalls.open_by_handle(directory, kind, layout.pack(number, 0), os.O_PATH)
    except OSError:
        return
    os.close(fd)
    raise NumberTaken(number)


def _not_had(number: int) -> Refused:
    return Refused(f"inode number {number} could not be had in {TRIES} tries")


def _text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
