"""`ckpt store stats`."""

from __future__ import annotations

from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import plain
from ckpt.cli.output import columns
from ckpt.cli.progress import announced, telling
from ckpt.model.reports import JobStatistics, StoreStatistics
from ckpt.units import human_bytes

HEADER = ("JOB", "CHECKPOINTS", "PLAIN", "UNIQUE", "ITS OWN", "STORED", "RATIO")


@make_command("stats", example="ckpt store stats")
@click.pass_obj
def command(call: Call) -> None:
    """Show what the checkpoints of each job take, and what the store saves.

    \b
    PLAIN    what they are when fetched: the sizes of all their files
    UNIQUE   of those bytes, each distinct one counted once
    ITS OWN  of the unique bytes, those that no other job needs
    STORED   on disk, compressed; of a job, what is its own: about what would go with it
    RATIO    how many plain bytes each stored byte stands for

    What nothing needs is freed by 'ckpt prune' and 'ckpt rm' once it is half of its pack.
    """  # noqa: D301 - the backspace is click's mark for lines to keep
    output = call.output
    with telling(output) as announce:
        store = announced(wiring.open_store(call.store, create=False), {"statistics": "adding up"}, announce)
        found = store.statistics()
        place = store.place
    output.result({"store": place, **document_of(found)}, _text(place, found))


def document_of(found: StoreStatistics) -> dict[str, Any]:
    """The statistics with the ratios; a ratio is null where nothing is stored."""
    document: dict[str, Any] = plain(found)
    document["ratio"] = _ratio(found)
    document["jobs"] = [plain(job) | {"ratio": _ratio(job)} for job in found.jobs]
    return document


def _ratio(found: StoreStatistics | JobStatistics) -> float | None:
    return round(found.plain_bytes / found.stored_bytes, 2) if found.stored_bytes else None


def _text(place: str, found: StoreStatistics) -> str:
    encrypted = "encrypted" if found.encrypted else "not encrypted"
    signatures = "required" if found.signatures_required else "optional"
    lines = [
        f"{place}: {encrypted}, signatures {signatures}",
        columns(HEADER, [*map(_job_row, found.jobs), _row("in all", found, "")]),
        f"{found.packs} pack(s), of which {human_bytes(found.garbage_bytes)} is needed by nothing",
    ]
    return "\n".join(lines)


def _job_row(job: JobStatistics) -> tuple[str, ...]:
    return _row(job.job or "-", job, human_bytes(job.exclusive_bytes))


def _row(name: str, found: StoreStatistics | JobStatistics, own: str) -> tuple[str, ...]:
    ratio = _ratio(found)
    return (
        name,
        str(found.checkpoints),
        human_bytes(found.plain_bytes),
        human_bytes(found.unique_bytes),
        own,
        human_bytes(found.stored_bytes),
        "-" if ratio is None else f"{ratio:.1f}",
    )
