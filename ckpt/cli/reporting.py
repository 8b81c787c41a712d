"""What `ckpt doctor --report` writes: what the command itself knows, beside what the host tells."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ckpt.cli import wiring
from ckpt.cli.documents import plain
from ckpt.cli.failures import document_of as failure_of
from ckpt.cli.store_stats import document_of as statistics_of
from ckpt.errors import CkptError, CommandFailed
from ckpt.model.checks import State
from ckpt.units import human_bytes

if TYPE_CHECKING:
    from ckpt.model.checks import HostCheck

_LEFT_OUT: Final = (
    "The store does not open; the command that prints its secret, and what that said, are left out."
)


def write(
    file: str, store: str, checks: tuple[HostCheck, ...], *, key_command: str | None, with_secrets: bool
) -> dict[str, Any]:
    """Write the report to the new file; gives what the answer in JSON says of it.

    Args:
        file: Where it goes.
        store: Where the store is.
        checks: What doctor found.
        key_command: What prints the store's secret, if anything does: it, and what it said, are left out.
        with_secrets: Whether command lines and environments of jobs are in it.

    Raises:
        WrongState: there is a file.
        OsRefused: it cannot be written.
    """
    from ckpt.host.bug_report import NEVER, SECRETS, json_part, write_report  # noqa: PLC0415

    more = (
        json_part(
            "doctor.json", "what 'ckpt doctor' says", [plain(_told(check, key_command)) for check in checks]
        ),
        json_part("store.json", "the store's statistics", _store(store)),
    )
    parts = write_report(file, wiring.state(), more, with_secrets=with_secrets)
    return {
        "file": file,
        "bytes": os.stat(file).st_size,
        "contents": [{"name": part.name, "what": part.what, "bytes": len(part.content)} for part in parts],
        "left_out": [*NEVER, *(() if with_secrets else SECRETS)],
    }


def text_of(report: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"The report is in {report['file']} ({human_bytes(report['bytes'])}, {len(report['contents'])} files; "
        "MANIFEST.txt says what is in it and what was left out). Look through it before you give it to others."
    )


def _told(check: HostCheck, key_command: str | None) -> HostCheck:
    is_of_key = key_command is not None and check.name == "store" and check.state is not State.OK
    return replace(check, detail=_LEFT_OUT) if is_of_key else check


def _store(place: str) -> dict[str, Any]:
    try:
        if not wiring.is_there(place):
            return {"store": place, "is_there": False}
        opened = wiring.open_store(place, create=False)
        return {"store": place, "is_there": True, **statistics_of(opened.statistics())}
    except CommandFailed as error:
        return {"store": place, "is_there": True, "error": failure_of(error) | {"message": _LEFT_OUT}}
    except CkptError as error:
        return {"store": place, "is_there": True, "error": failure_of(error)}
