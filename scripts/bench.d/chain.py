"""A chain of checkpoints of one running process: what each adds to ckpt's store, beside what had changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dumps
from contenders import Ckpt, Sample, ToolError
from dumps import Changes
from rounds import OWN_BYTES, a_place, claim_memory, stored_bytes
from workloads import Workload

LIMIT = 1.2


@dataclass(frozen=True)
class Link:
    """One checkpoint; `changes` since the one before, none for the first."""

    changes: Changes | None
    stored_bytes: int
    ingest: Sample


@dataclass(frozen=True)
class Chain:
    """All of them, the oldest first, and what it took to fetch the oldest and the newest at the end."""

    links: tuple[Link, ...]
    fetch_first: Sample
    fetch_last: Sample

    @property
    def stored_bytes(self) -> int:
        return sum(link.stored_bytes for link in self.links)

    @property
    def changed_compressed_bytes(self) -> int:
        return sum(link.changes.compressed_bytes for link in self.links if link.changes)

    @property
    def allowed_bytes(self) -> float:
        return self.links[0].stored_bytes + LIMIT * self.changed_compressed_bytes


def make(
    workload: Workload, above: Path, ready: tuple[Path, ...], length: int, say: Callable[[str], None]
) -> Chain:
    """Store so many dumps; the first ones are `ready` and stay, the others are made and removed.

    Raises:
        ToolError: ckpt failed, or what it gave back is not what it was given.
    """
    tool = Ckpt()
    links: list[Link] = []
    with a_place(above, "chain") as place:
        tool.prepare(place)
        oldest = before = ready[0]
        for number in range(length):
            say(f"checkpoint {number + 1} of {length}")
            if number < len(ready):
                images = ready[number]
            else:
                images = place / f"dump-{number}"
                workload.change()
                dumps.dump(workload.pid, images)
            had = stored_bytes(place / "store")
            sample = tool.ingest(place, images, str(number))
            links.append(
                Link(
                    changes=dumps.changes(before, images) if number else None,
                    stored_bytes=stored_bytes(place / "store") - had,
                    ingest=sample,
                )
            )
            if before not in ready:
                shutil.rmtree(before)
            before = images
        return Chain(
            links=tuple(links),
            fetch_first=_fetch(tool, place, "0", oldest),
            fetch_last=_fetch(tool, place, str(length - 1), before),
        )


def _fetch(tool: Ckpt, place: Path, label: str, expected: Path) -> Sample:
    target = place / f"fetched-{label}"
    target.mkdir()
    claim_memory(dumps.image_bytes(expected) + OWN_BYTES)
    sample, found = tool.fetch(place, label, target)
    differs = dumps.difference(expected, found)
    if differs is not None:
        raise ToolError(f"checkpoint {label} of the chain is not what was stored: {differs}")
    shutil.rmtree(target)
    return sample
