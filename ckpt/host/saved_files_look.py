"""Can saved files be written back? Everything that may refuse is asked of every file before anything is changed.

Rules:
- What is as it was saved is left alone, so that a program may go on running that somebody else runs, too.
- A checkpoint may lie: in ckpt's own directory nothing is written, made or moved but the files of the restored job
  itself that go with its memory (saved_files_appended.py). Those of another job stay as they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ckpt.errors import HostMismatch, NoSpace
from ckpt.host.inodes import calls, copying
from ckpt.host.inodes.attributes import attributes_of
from ckpt.host.inodes.directories import topmost_missing
from ckpt.host.inodes.places import Place, Refused, is_plain, is_written_elsewhere, opened_place
from ckpt.host.saved_files_appended import job_of_own_file
from ckpt.host.saved_files_found import is_below
from ckpt.model.checkpoint import SavedFile
from ckpt.model.shipping import ShippedDirectory

REASONS_MAX: Final = 20
"""How many files one error names; the count of the others is given."""

PERMISSIONS: Final = 0o1777
"""What a restore gives a file: never set-uid and set-gid (rule F23 of images/FORMAT.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A saved file, and the path of the copy of its content."""

    file: SavedFile
    copy: str


@dataclass(slots=True)
class Looked:
    """What was found out; `own` is ckpt's own directory, and `job` what is restored.

    `of_others` are the logs of other jobs, and `unchanged` are the paths where nothing is to be done, `tops` the topmost missing directories, each with what
    it is made for, and `stray` the files that may not be found, by their directories.
    """

    own: str
    job: str
    of_others: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    unchanged: set[str] = field(default_factory=set)
    tops: dict[str, str] = field(default_factory=dict)
    stray: dict[str, list[str]] = field(default_factory=dict)
    needed: dict[int, int] = field(default_factory=dict)
    directories: dict[int, str] = field(default_factory=dict)
    probed: set[str] = field(default_factory=set)


def look(
    ref: str,
    contents: Sequence[Content],
    directories: Sequence[str],
    own: str,
    *,
    absent: Sequence[str] = (),
    made: Sequence[ShippedDirectory] = (),
    job: str = "",
) -> Looked:
    """Find out whether everything can be done.

    Args:
        ref: The checkpoint, as the user named it.
        contents: What is to be written.
        directories: Those that were saved whole.
        own: ckpt's own directory, where nobody's files are.
        absent: Paths at which no file may be found, outside those directories.
        made: Directories that will be made where they are missing.
        job: What is restored.

    Raises:
        HostMismatch: files cannot be written; each is named with the reason.
        NoSpace: a file system has too little space for the new contents and the former ones beside them.
    """
    looked = Looked(own=os.path.realpath(own), job=job)
    for directory in directories:
        try:
            _look_at_directory(directory, looked)
        except Refused as refused:
            looked.reasons.append(f"{directory}: {refused}")
        except OSError as error:
            looked.reasons.append(f"{directory}: {error.strerror or error}")
    for content in contents:
        try:
            _look_at(content, looked)
        except Refused as refused:
            looked.reasons.append(f"{content.file.path}: {refused}")
        except OSError as error:
            looked.reasons.append(f"{content.file.path}: {error.strerror or error}")
    for each in made:
        try:
            _look_at_made(each.path, looked)
        except Refused as refused:
            looked.reasons.append(f"{each.path}: {refused}")
        except OSError as error:
            looked.reasons.append(f"{each.path}: {error.strerror or error}")
    for path in absent:
        try:
            if _is_stray(path, looked):
                looked.stray.setdefault(os.path.dirname(path), []).append(path)
        except Refused as refused:
            looked.reasons.append(f"{path}: {refused}")
        except OSError as error:
            looked.reasons.append(f"{path}: {error.strerror or error}")
    if looked.reasons:
        raise HostMismatch(
            ref=ref,
            reasons=_some(looked.reasons),
            remedy="Mend that, or leave the files as they are with --files newest.",
        )
    _check_space(looked)
    return looked


def _look_at_directory(directory: str, looked: Looked) -> None:
    if not is_plain(directory) or is_below(looked.own, directory):
        raise Refused("it is no directory that files are saved from")
    _refuse_own(directory, looked)
    try:
        os.close(calls.open_without_links(directory, os.O_RDONLY | os.O_DIRECTORY))
    except FileNotFoundError:
        return


def _look_at_made(path: str, looked: Looked) -> None:
    _refuse_own(path, looked)
    if os.path.lexists(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise Refused("something that is no directory is in the way")
        return
    looked.tops.setdefault(_missing_top(path) or path, path)


def _look_at(content: Content, looked: Looked) -> None:
    path = content.file.path
    if owner := job_of_own_file(path, looked.own):
        if owner != looked.job:
            looked.of_others.add(path)
            return
    else:
        _refuse_own(path, looked)
    top = _missing_top(path)
    with opened_place(top or path) as place:
        exists = not top and place.exists()
        if exists and _is_as_saved(content, place):
            looked.unchanged.add(path)
            return
        if place.directory_path not in looked.probed:
            # This tells a read-only file system, too, and one without files that have no name.
            os.close(place.make_unnamed())
            looked.probed.add(place.directory_path)
        needed = os.stat(content.copy).st_blocks * 512
        if top:
            looked.tops.setdefault(top, path)
        elif exists:
            needed = _needed_to_replace(content, place)
        device = os.fstat(place.directory).st_dev
        looked.needed[device] = looked.needed.get(device, 0) + needed
        looked.directories[device] = place.directory_path


def _needed_to_replace(content: Content, place: Place) -> int:
    """What the new content and the former one take together, in bytes: of a file that has only grown what came new."""
    with place.opened(os.O_RDWR) as target, open(content.copy, "rb") as source:
        if copying.begins_with(target, source.fileno()):
            return os.fstat(target).st_size - content.file.content.size_bytes
        return copying.needed_bytes(source.fileno()) + copying.needed_bytes(target)


def _refuse_own(path: str, looked: Looked) -> None:
    if is_below(path, looked.own):
        raise Refused(f"it is in ckpt's own {looked.own}")


def _is_as_saved(content: Content, place: Place) -> bool:
    """Whether the file that is there need not be written.

    Raises:
        Refused: it is none of the workload's.
    """
    saved, status = content.file, place.status()
    if not stat.S_ISREG(status.st_mode):
        raise Refused("something that is no file is in the way")
    if (status.st_uid, status.st_gid) != (saved.uid, saved.gid):
        raise Refused(f"it belongs to uid {status.st_uid}, gid {status.st_gid} now")
    with place.opened(os.O_RDONLY) as found, open(content.copy, "rb") as source:
        if is_written_elsewhere(found):
            raise Refused("another process has it open for writing")
        if copying.same_content(source.fileno(), found):
            same = (status.st_mode & PERMISSIONS, status.st_mtime_ns)
            if (
                same == (saved.mode & PERMISSIONS, saved.mtime_ns)
                and attributes_of(found) == saved.attributes
            ):
                return True
        if copying.is_special(found):
            raise Refused("it is immutable, append-only, encrypted or sealed")
    return False


def _is_stray(path: str, looked: Looked) -> bool:
    """Whether there is a file that must be moved aside.

    Raises:
        Refused: somebody else writes to it.
    """
    _refuse_own(path, looked)
    if _missing_top(path):
        return False
    with opened_place(path) as place:
        if not place.exists() or not stat.S_ISREG(place.status().st_mode):
            return False
        with place.opened(os.O_RDONLY) as found:
            if is_written_elsewhere(found):
                raise Refused("it was not there, and another process has it open for writing now")
    return True


def _missing_top(path: str) -> str:
    """The topmost directory of the path that is missing, "" if none is."""
    if not is_plain(path):
        raise Refused("its path is not absolute and plain")
    return topmost_missing(path)


def _check_space(looked: Looked) -> None:
    for device, needed in looked.needed.items():
        space = os.statvfs(looked.directories[device])
        available = space.f_bavail * space.f_frsize
        if needed > available:
            raise NoSpace(
                place=looked.directories[device],
                available_bytes=available,
                needed_bytes=needed,
                option="--files newest leaves the files as they are",
            )


def _some(reasons: Sequence[str]) -> tuple[str, ...]:
    more = len(reasons) - REASONS_MAX
    return (*reasons[:REASONS_MAX], *((f"and {more} more file(s)",) if more > 0 else ()))
