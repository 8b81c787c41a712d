"""The first rung: the very inode was kept under a second name, a pin, and is put back.

Rules:
- What the name leads to afterwards holds what the file there held before: where the pin holds something else,
  that is written into it first, and its former content is kept beside it.
- A pinned inode that has a name elsewhere by now (the file was renamed, not replaced) is somebody's file: it is
  neither written to nor given back its old name.
Source: pinbook.py makes the pins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from ckpt.host.inodes import copying
from ckpt.host.inodes.changes import Changes, attempt
from ckpt.host.inodes.ledger import Ledger
from ckpt.host.inodes.moved import MovedFile, matches
from ckpt.host.inodes.pindirs import PinDirectories, pin_place
from ckpt.host.inodes.places import Place, Refused, held_alone, opened_place
from ckpt.host.inodes.refilling import refill
from ckpt.host.inodes.swapping import check_unchanged, names_to_swap, swap
from ckpt.host.inspection import syscalls
from ckpt.host.inspection.details import generation_of
from ckpt.model.inodes import FileKind, InodeMethod, InodeRecord

_READ: Final = os.O_RDONLY | os.O_NOATIME


class PinnedFiles:
    """Puts pinned inodes back. Fits the port `Rung`."""

    def __init__(self, state: str, ledger: Ledger) -> None:
        """Use the pins of the state directory `state`, and note all changes in `ledger`."""
        self._directories = PinDirectories(state)
        self._changes = Changes(ledger)

    @property
    def method(self) -> InodeMethod:
        """What an outcome of it is called."""
        return InodeMethod.PINNED

    def prepare(self, files: Iterable[MovedFile]) -> None:
        """Nothing: each file has a pin of its own, or none."""

    def try_keep(self, file: MovedFile) -> str | None:
        """Put the pinned inode back; None when that is done, else why not.

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

    def settle(self) -> None:
        """Remove what only undo() needed. Never fails; safe to repeat."""
        self._changes.settle()

    def _keep(self, file: MovedFile) -> None:
        record = file.record
        if record.kind is not FileKind.REGULAR:
            raise Refused("only regular files are pinned")
        if (record.device, record.inode) != (file.wanted.device, file.wanted.inode):
            raise Refused(
                "the workload saw it with another number than its own: no file is to be kept for it"
            )
        with opened_place(file.path) as place, ExitStack() as held:
            now = place.status()
            if matches(now, file.wanted):
                return
            check_unchanged(file, now)
            directory = held.enter_context(self._directories.there(place))
            if directory is None:
                raise Refused("there is no pin of it on its file system")
            pin = pin_place(directory, record.inode)
            _check_pin(pin, record)
            source = held.enter_context(place.opened(_READ))
            target = held.enter_context(pin.opened(os.O_RDWR))
            leases = [held.enter_context(held_alone(fd)) for fd in (source, target)]
            if copying.is_special(source):
                raise Refused("it is immutable, append-only, encrypted or sealed")
            names = names_to_swap(place, now, self._directories.count_of(place, now))
            with self._changes.all_or_none():
                refill(source, target, pin, self._changes)
                swap(place, now, target, names, self._changes)
                for lease in leases:
                    lease.check()


def _check_pin(pin: Place, record: InodeRecord) -> None:
    """Nothing, if this is the pin of the recorded file, and the only name of it.

    Raises:
        Refused: it is not.
    """
    try:
        status = pin.status()
    except FileNotFoundError:
        raise Refused("there is no pin of it") from None
    if not matches(status, record.identity):
        raise Refused("its pin is on another device")
    generation = generation_of(pin.path)
    if None not in (generation, record.generation) and generation != record.generation:
        raise Refused("its number was used again: the pin is of another file")
    birth = syscalls.statx(pin.path).btime_ns
    if None not in (birth, record.btime_ns) and birth != record.btime_ns:
        raise Refused("its number was used again: the pin is of another file")
    if status.st_nlink != 1:
        raise Refused("the file that had its number has another name now")
