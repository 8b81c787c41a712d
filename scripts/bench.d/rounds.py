"""Give the same two dumps to every tool, in turns, and gather what each took."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dumps
from contenders import Ckpt, Contender, Sample, ToolError
from meter import flush

# What a tool needs beside what it writes; and what half-compressible dumps take in a store, generously.
OWN_BYTES = 256 << 20
STORED_SHARE = 0.6
FREE_SHARE = 0.8
FIRST, SECOND, FETCH = "first", "second", "fetch"
ACTS = (FIRST, SECOND, FETCH)


@dataclass
class Figures:
    """What one tool took: a sample for each round and act; sizes are those of its last round."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: {act: [] for act in ACTS})
    stored_bytes: int = 0
    added_bytes: int = 0
    starts_s: list[float] = field(default_factory=list)

    def seconds(self, act: str) -> float:
        return statistics.median(sample.seconds for sample in self.samples[act])

    def cpu_seconds(self, act: str) -> float:
        return statistics.median(sample.cpu_seconds for sample in self.samples[act])

    def peak_mib(self, act: str) -> float:
        return max(sample.peak_mib for sample in self.samples[act])

    def ratio(self, other: Figures, act: str, other_act: str | None = None) -> float:
        """The median of the rounds' ratios: what disturbs one round disturbs both tools of it."""
        pairs = zip(self.samples[act], other.samples[other_act or act], strict=True)
        return statistics.median(mine.seconds / its.seconds for mine, its in pairs)


@dataclass(frozen=True)
class Pair:
    """Two dumps of one process, one after the other."""

    place: Path
    first: Path
    second: Path

    @property
    def bytes(self) -> int:
        return dumps.image_bytes(self.first) + dumps.image_bytes(self.second)


def measure(
    tools: tuple[Contender, ...], pair: Pair, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, Figures], list[str]]:
    """The figures of every tool that did all it was told, and what went wrong with the others."""
    figures = {tool.name: Figures() for tool in tools}
    problems: list[str] = []
    tight = pair.bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for number in range(rounds):
        for tool in tools[number % len(tools) :] + tools[: number % len(tools)]:
            if tool.name not in figures:
                continue
            say(f"round {number + 1} of {rounds}: {tool.name}")
            try:
                once(tool, pair, figures[tool.name], tight=tight)
            except ToolError as error:
                problems.append(f"{tool.name}: {error}")
                del figures[tool.name]
    return figures, problems


def once(tool: Contender, pair: Pair, figures: Figures, *, tight: bool) -> None:
    """One round of one tool in a store of its own, which is removed after.

    Where memory is `tight`, a dump that is not needed is put out of the page cache, for the other to stay in.

    Raises:
        ToolError: it failed, or what it gave back is not what it was given.
    """
    with a_place(pair.place, tool.name) as place:
        tool.prepare(place)
        for act, images, other in (
            (FIRST, pair.first, pair.second),
            (SECOND, pair.second, pair.first),
        ):
            if tight:
                dumps.out_of_page_cache(other)
            dumps.into_page_cache(images)
            flush(str(place))
            claim_memory(int(STORED_SHARE * dumps.image_bytes(images)) + OWN_BYTES)
            before = stored_bytes(place / "store")
            figures.samples[act].append(tool.ingest(place, images, act))
            grown = stored_bytes(place / "store") - before
            if act == FIRST:
                figures.stored_bytes = grown
            else:
                figures.added_bytes = grown
        start_s = tool.start_s(place)
        if start_s is not None:
            figures.starts_s.append(start_s)
        target = place / "fetched"
        target.mkdir()
        if tight:
            dumps.out_of_page_cache(pair.second)
        dumps.into_page_cache(place / "store")
        flush(str(place))
        claim_memory(dumps.image_bytes(pair.second) + OWN_BYTES)
        sample, found = tool.fetch(place, SECOND, target)
        figures.samples[FETCH].append(sample)
        differs = dumps.difference(pair.second, found)
        if differs is not None:
            raise ToolError(f"what it gave back is not what was stored: {differs}")


def claim_memory(size_bytes: int) -> None:
    """Have so much memory free that the host has really given to this machine.

    A virtual machine with a balloon that reports free pages pays for each page that it touches anew: measured,
    2 s for a GiB, at random for whichever tool comes first. Here it is paid before the clock runs.
    """
    meminfo = Path("/proc/meminfo").read_text()
    free_bytes = int(meminfo.partition("MemFree:")[2].split()[0]) * 1024
    size = min(size_bytes, int(free_bytes * FREE_SHARE))
    touch = f"import mmap as m; m.mmap(-1, {size}, m.MAP_PRIVATE | m.MAP_ANONYMOUS | m.MAP_POPULATE)"
    subprocess.run([sys.executable, "-I", "-S", "-c", touch], check=True)


def profiles(pair: Pair) -> dict[str, Path]:
    """Run ckpt's three acts once more, each under cProfile; these times are not counted."""
    tool = Ckpt()
    found: dict[str, Path] = {act: pair.place / f"{act}.profile" for act in ACTS}
    with a_place(pair.place, "profile") as place:
        tool.prepare(place)
        tool.ingest(place, pair.first, FIRST, profile=found[FIRST])
        tool.ingest(place, pair.second, SECOND, profile=found[SECOND])
        target = place / "fetched"
        target.mkdir()
        tool.fetch(place, SECOND, target, profile=found[FETCH])
    return found


@contextmanager
def a_place(above: Path, name: str) -> Iterator[Path]:
    place = above / name
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def stored_bytes(store: Path) -> int:
    """The space that the files of a store take on disk, as du counts it; directories not counted."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(store)
        for name in names
    )
