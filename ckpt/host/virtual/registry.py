"""Which running workloads have a virtual layer: one directory for each, below the state's.

    STATE/inodes/NUMBER/processes   in whom it was put: "PID START-TICKS" a line
                        …           what directory.py says

NUMBER (8 hexadecimal digits) is also in the layer's filters. Children inherit a filter without being registered:
a process belongs to a layer if it or an ancestor does. So whoever adopts the workload's orphans is registered too.
Rules: the supervisor removes its directory when it ends; what is left of one that was killed is swept once no
process of it is left. What cannot be read is not there.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.process_table import ProcessRef, is_alive, process_ref, stat_of
from ckpt.host.virtual.directory import NAMES, NEW, PROCESSES_NAME, SERVERS_NAME, TABLE_NAME
from ckpt.host.virtual.server_process import NAME
from ckpt.host.virtual.table import IdentityTable
from ckpt.units import Pid

_DIRECTORY: Final = "inodes"
_ATTEMPTS: Final = 16
_ANCESTORS_MAX: Final = 256
_YOUNG_S: Final = 60.0
_FILE_BYTES_MAX: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlace:
    """Where a layer is kept, and its number."""

    directory: str
    number: int


def create(state: str) -> LayerPlace:
    """A new layer's empty directory below the state directory; what is left of ended ones goes.

    Raises:
        OsRefused: it cannot be made.
    """
    sweep(state)
    place = f"{state}/{_DIRECTORY}"
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        for _ in range(_ATTEMPTS):
            number = secrets.randbits(32)
            directory = f"{place}/{number:08x}"
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)
                return LayerPlace(directory=directory, number=number)
    except OSError as error:
        raise _refused("make", place, error) from error
    raise _refused("make", place, FileExistsError())


def register(directory: str, processes: Iterable[ProcessRef]) -> None:
    """File these as the processes of a layer, in place of those before; before they run on.

    Raises:
        OsRefused: it cannot be written.
    """
    path = f"{directory}/{PROCESSES_NAME}"
    try:
        with open(path + NEW, "w", encoding="ascii") as stream:
            stream.writelines(f"{process.pid} {process.start_ticks}\n" for process in processes)
        os.replace(path + NEW, path)
    except OSError as error:
        raise _refused("write", path, error) from error


def remove(directory: str) -> None:
    """Take a layer's directory away; it is no error if it is gone."""
    for name in NAMES:
        with suppress(OSError):
            os.unlink(f"{directory}/{name}")
    with suppress(OSError):
        os.rmdir(directory)


def directory_of(state: str, processes: Iterable[ProcessRef]) -> str | None:
    """The directory of the layer that one of these processes, or of their ancestors, belongs to."""
    owners = {process: directory for directory in _layers(state) for process in _processes(directory)}
    if not owners:
        return None
    for process in processes:
        for each in _with_ancestors(process):
            if each in owners:
                return owners[each]
    return None


def table_for(state: str, processes: Iterable[ProcessRef]) -> IdentityTable | None:
    """What the workload with these processes is shown; None if it has no layer.

    Raises:
        ObjectCorrupt, OsRefused: it has one, and its table cannot be read.
    """
    directory = directory_of(state, processes)
    if directory is None:
        return None
    path = f"{directory}/{TABLE_NAME}"
    try:
        return IdentityTable.decode(_read(path))
    except OSError as error:
        raise _refused("read", path, error) from error


def sweep(state: str) -> int:
    """Remove what is left of layers whose workload and supervisor have ended; gives their number."""
    count = 0
    for directory in _layers(state):
        processes = _processes(directory)
        # Without that file it is about to be made, or was abandoned there: then its supervisor goes by itself.
        gone = processes and not any(map(is_alive, processes))
        abandoned = not processes and not _is_young(directory)
        if (gone or abandoned) and not servers_of(directory):
            remove(directory)
            count += 1
    return count


def servers_of(directory: str) -> tuple[Pid, ...]:
    """The processes that said last that they serve this layer, and still run; the one that answers first."""
    try:
        pids = tuple(Pid(int(pid)) for pid in _read(f"{directory}/{SERVERS_NAME}").split())
    except (OSError, ValueError, ObjectCorrupt):
        return ()
    return tuple(filter(serves, pids))


def serves(pid: Pid) -> bool:
    """Whether this is a running supervisor, of whichever layer."""
    stat = stat_of(pid)
    return stat is not None and not stat.ended and stat.name == NAME


def _layers(state: str) -> list[str]:
    place = f"{state}/{_DIRECTORY}"
    try:
        return [f"{place}/{name}" for name in sorted(os.listdir(place))]
    except OSError:
        return []


def _processes(directory: str) -> tuple[ProcessRef, ...]:
    try:
        lines = _read(f"{directory}/{PROCESSES_NAME}").decode("ascii").splitlines()
        pairs = [line.split() for line in lines]
        return tuple(ProcessRef(pid=Pid(int(pid)), start_ticks=int(ticks)) for pid, ticks in pairs)
    except (OSError, ValueError, ObjectCorrupt):
        return ()


def _with_ancestors(process: ProcessRef) -> Iterable[ProcessRef]:
    yield process
    if process_ref(process.pid) != process:
        return
    here: int = process.pid
    for _ in range(_ANCESTORS_MAX):
        stat = stat_of(here)
        if stat is None or stat.parent <= 1:
            return
        here = stat.parent
        parent = stat_of(here)
        if parent is None:
            return
        yield parent.ref


def _is_young(directory: str) -> bool:
    with suppress(OSError):
        return time.time() - os.stat(directory).st_mtime < _YOUNG_S
    return True


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        content = stream.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ObjectCorrupt(kind="file", name=path, reason="it is too large", remedy="Remove it.")
    return content


def _refused(operation: str, subject: str, error: OSError) -> OsRefused:
    return OsRefused(operation=operation, subject=subject, reason=error.strerror or str(error))
