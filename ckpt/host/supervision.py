"""What a job's supervisor does, kept with the job; and who is the one that does it.

    STATE/jobs/NAME/supervision.json    written when the supervision begins, removed when the job's end was seen
    STATE/jobs/NAME/supervisor.log      what a supervisor in the background had to tell
    STATE/locks/supervisor-NAME         held by the supervisor, and by the checkpoint that it has under way

Rules:
- The document is replaced as a whole, and durable when save() returns.
- It is read strictly: one with a word that is not known is damaged, or of a newer ckpt, and is not acted on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, Final

from ckpt.errors import CkptError, NoSpace, ObjectCorrupt, OsRefused
from ckpt.host.feeding import is_position_exact
from ckpt.host.jobs import STATE_VARIABLE, JobRegistry, check_name
from ckpt.host.locks import exclusive, once_free
from ckpt.host.process_table import process_ref
from ckpt.host.starting import ERRORS_LOG, STDIN_POSITION
from ckpt.model.checkpoint import ClosingOptions, DumpOptions
from ckpt.model.supervision import AtEnd, Interval, OnTerm, Standing, Supervision
from ckpt.units import ByteCount, JobName, Nanoseconds, Pid

DOCUMENT: Final = "supervision.json"
SUPERVISOR_LOG: Final = "supervisor.log"
PATIENCE_S: Final = 120.0
"""How long the lock is waited for that a dead supervisor's last checkpoint still holds."""

_VERSION: Final = 1
_DOCUMENT_BYTES_MAX: Final = 1 << 20


def save(registry: JobRegistry, job: JobName, supervision: Supervision) -> None:
    """Write down what the job's supervisor does; durable when this returns.

    Raises:
        NoSpace, OsRefused: it cannot be written; the former document is still there.
    """
    directory = registry.prepare(job)
    path = f"{directory}/{DOCUMENT}"
    document = {
        "version": _VERSION,
        **asdict(supervision),
        "options": asdict(supervision.options) | {"tcp_close": supervision.options.tcp_close},
    }
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(fd)
        os.rename(f"{path}.new", path)
        _sync_directory(directory)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                place=directory, available_bytes=0, needed_bytes=4096, option=STATE_VARIABLE
            ) from error
        raise OsRefused(operation="write", subject=path, reason=error.strerror or str(error)) from error


def load(registry: JobRegistry, job: JobName) -> Supervision | None:
    """What the job's supervisor does; None if it has none.

    Raises:
        ObjectCorrupt: the document cannot be read.
    """
    path = f"{registry.directory(job)}/{DOCUMENT}"
    try:
        with open(path, "rb") as stream:
            return _supervision(json.loads(stream.read(_DOCUMENT_BYTES_MAX)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CkptError) as error:
        raise ObjectCorrupt(
            kind="supervision of job",
            name=job,
            reason=str(error) or type(error).__name__,
            remedy=f"Remove {path}, and supervise the job anew by 'ckpt run --resume'.",
        ) from error


def is_supervised(registry: JobRegistry, job: JobName) -> bool:
    """Whether a supervision of the job has begun and not ended, with or without a living supervisor."""
    return os.path.exists(f"{registry.directory(job)}/{DOCUMENT}")


def remove(registry: JobRegistry, job: JobName) -> None:
    """The supervision has ended; nothing if there was none."""
    directory = registry.directory(job)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/{DOCUMENT}")
        _sync_directory(directory)


@contextlib.contextmanager
def lock(registry: JobRegistry, job: JobName, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Be the job's supervisor; waits for a checkpoint that a dead one has left under way.

    Raises:
        BadName: no job can have this name.
        Locked: there is one that lives; names its pid.
    """
    directory, name = f"{registry.state}/locks", f"supervisor-{check_name(job)}"
    with once_free(
        lambda: exclusive(directory, [name], subject=f"The supervision of job {job}"),
        patience_s,
        gives_up=lambda: _living_holder(f"{directory}/{name}") is not None,
    ):
        yield


def supervisor_of(registry: JobRegistry, job: JobName) -> Pid | None:
    """The process that supervises the job; None if there is none that lives."""
    return _living_holder(f"{registry.state}/locks/supervisor-{check_name(job)}")


def appended_files(
    registry: JobRegistry, job: JobName, log: str, *, notes_position: bool = False
) -> tuple[str, ...]:
    """What of the job's output and input is saved with each checkpoint: regular files that only grow.

    `log` is the file that the user wants its output in; "" for the job's own. The position in its input is among them
    where it will be that of the checkpoint: `notes_position` says that who feeds it writes it down at the freeze.
    """
    directory = registry.directory(job)
    wanted = [log] if log else [f"{directory}/log", f"{directory}/{ERRORS_LOG}"]
    record = registry.find(job)
    if notes_position or (record is not None and is_position_exact(registry, record)):
        wanted.append(f"{directory}/{STDIN_POSITION}")
    return tuple(path for path in wanted if os.path.isfile(path))


def _living_holder(path: str) -> Pid | None:
    """The process that has locked the file and has written its number there.

    After a crash the number may be another process's by now; and the lock of one that has died may be held by what it
    has forked. Asked is /proc, and not the lock: trying to take it would be in the way of who wants it.
    """
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            holder = stream.read(32).strip()
            wanted = os.fstat(stream.fileno())
        if not holder.isdecimal() or process_ref(int(holder)) is None:
            return None
        names = os.listdir(f"/proc/{holder}/fd")
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            if not os.path.samestat(os.stat(f"/proc/{holder}/fd/{name}"), wanted):
                continue
            with open(f"/proc/{holder}/fdinfo/{name}", encoding="ascii", errors="replace") as stream:
                if "FLOCK" in stream.read():
                    return Pid(int(holder))
    return None


def _supervision(document: Any) -> Supervision:
    if not isinstance(document, dict):
        raise TypeError("not an object")
    if document.pop("version") != _VERSION:
        raise ValueError("written by another version of ckpt")
    _demand(document, Supervision)
    interval = document["interval"]
    return Supervision(
        store=_text(document["store"]),
        log=_text(document["log"]),
        interval=None if interval is None else _interval(interval),
        keep=_count(document["keep"]),
        on_term=OnTerm(document["on_term"]),
        grace_ns=Nanoseconds(_count(document["grace_ns"])),
        at_end=AtEnd(document["at_end"]),
        with_files=tuple(map(_text, document["with_files"])),
        store_max=ByteCount(_count(document["store_max"])),
        group=_text(document["group"]),
        options=_options(document["options"]),
        standing=Standing(document["standing"]),
    )


def _interval(document: dict[str, Any]) -> Interval:
    _demand(document, Interval)
    return Interval(
        every_ns=Nanoseconds(_count(document["every_ns"])),
        auto=_flag(document["auto"]),
        mtbf_ns=Nanoseconds(_count(document["mtbf_ns"])),
        max_frozen=float(document["max_frozen"]),
    )


def _options(document: dict[str, Any]) -> DumpOptions:
    kind = ClosingOptions if _flag(document.pop("tcp_close")) else DumpOptions
    _demand(document, DumpOptions)
    limit = ByteCount(_count(document.pop("ghost_limit_bytes")))
    return kind(ghost_limit_bytes=limit, **{name: _flag(value) for name, value in document.items()})


def _demand(document: dict[str, Any], kind: type) -> None:
    """Refuse a document that has not exactly the fields of this dataclass."""
    wanted = {field.name for field in fields(kind)}
    if wrong := sorted(wanted ^ set(document)):
        raise ValueError(f"it lacks, or should not have, {', '.join(wrong)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise TypeError(f"{value!r} is no number from 0 on")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
