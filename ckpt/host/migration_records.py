"""What is written down of a migration on each side, and how it becomes bytes.

Rules:
- A record is JSON, versioned; what is not wholly understood is damaged, and named.
- Only small modules are imported: the guardian asks state_in(), and holds this module in its memory.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeVar

from ckpt.errors import ObjectCorrupt
from ckpt.host.process_table import ProcessRef
from ckpt.model.migration import MigrationId, SourceState, TargetState
from ckpt.units import Nanoseconds, Pid

SOURCE_NAME: Final = "source.json"
TARGET_NAME: Final = "target.json"

_VERSION: Final = 1
_RECORD_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """A migration away from this host.

    `job` "" is a workload without a name; `subject` is what people call it, `pid` its first root and `cgroup` where
    it is frozen. `host`, `identity`, `known_hosts` and `remote_ckpt` are what the user said of the other host, `store`
    this host's. `attempt` counts the offers that were made. `options` is what the command line keeps for itself.
    """

    id: MigrationId
    state: SourceState
    job: str
    subject: str
    pid: Pid
    cgroup: str
    host: str
    identity: str
    known_hosts: str
    remote_ckpt: str
    store: str
    boot_id: str
    controller: ProcessRef
    began_ns: Nanoseconds
    attempt: int = 1
    options: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """A migration to this host.

    `time`, `inodes`, `pids` and `cgroup` are how the workload is to be restored, also once more after a crash.
    `attempt` is the number of the offer that was accepted last.
    """

    id: MigrationId
    state: TargetState
    job: str
    source_host: str
    boot_id: str
    agent: ProcessRef
    began_ns: Nanoseconds
    time: str
    inodes: str
    pids: str
    cgroup: str
    attempt: int = 1


Record = TypeVar("Record", SourceRecord, TargetRecord)


def encode(record: SourceRecord | TargetRecord) -> bytes:
    """The record as JSON."""
    return json.dumps({"version": _VERSION, **asdict(record)}).encode()


def read_record(path: str, kind: type[Record]) -> Record | None:
    """The record in the file at this path, in the directory that has its id as name; None if there is none.

    Raises:
        ObjectCorrupt: it cannot be read, or is another's.
    """
    try:
        return _record(kind, _document(path), os.path.basename(os.path.dirname(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, error) from error


def state_in(path: str) -> str:
    """The state in the record at this path, durable when this returns; "" if there is none.

    For whoever undoes an operation whose controller died: what a source that says COMMITTED, or FINISHED, left frozen
    is killed, not thawed, and what a target that says RUNNING restored is thawed, not killed.

    Raises:
        ObjectCorrupt: it cannot be read, and then neither may be done.
    """
    try:
        # A writer that died may not have come to sync it, and a power cut must not take back what is acted on.
        for each in (path, os.path.dirname(path)):
            sync(each)
        return str(_document(path)["state"])
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, error) from error


def sync(path: str) -> None:
    """Make the file or directory durable.

    Raises:
        OSError: as the file system says.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _document(path: str) -> dict[str, Any]:
    with open(path, "rb") as stream:
        raw = stream.read(_RECORD_BYTES_MAX + 1)
    if len(raw) > _RECORD_BYTES_MAX:
        raise ValueError(f"it is longer than {_RECORD_BYTES_MAX} bytes")
    try:
        document = json.loads(raw)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise TypeError("it is no object")
    return document


def _record(kind: type[Record], document: dict[str, Any], wanted: str) -> Record:
    if document.pop("version") != _VERSION:
        raise ValueError("written by another version of ckpt")
    types = {field.name: str(field.type) for field in fields(kind)}
    record = kind(**{name: _value(types[name], name, value) for name, value in document.items()})
    if record.id != wanted:
        raise ValueError(f"it is that of migration {record.id}")
    return record


_STATES: Final[dict[str, type[SourceState | TargetState]]] = {
    "SourceState": SourceState,
    "TargetState": TargetState,
}
_NUMBERS: Final = ("Pid", "Nanoseconds", "int")


def _value(wanted: str, name: str, value: Any) -> Any:
    if wanted == "ProcessRef":
        return ProcessRef(
            pid=Pid(_number(name, value["pid"])), start_ticks=_number(name, value["start_ticks"])
        )
    if wanted in _NUMBERS:
        return _number(name, value)
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return _STATES[wanted](value) if wanted in _STATES else value


def _number(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is no number that can be right")
    return value


def _corrupt(path: str, error: Exception) -> ObjectCorrupt:
    return ObjectCorrupt(
        kind="record",
        name=path,
        reason=str(error) or type(error).__name__,
        remedy="Nothing was done with this migration: look at both hosts, and remove the record if it is of no use.",
    )
