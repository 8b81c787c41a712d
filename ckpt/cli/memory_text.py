"""What `ckpt memory` answers, for people and as JSON; text is written as it is found, not held."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any, Final

import click

from ckpt.cli.call import Call, usage
from ckpt.cli.hexdump import LINE_BYTES, hexdump, in_words, plain_bytes, printable
from ckpt.cli.output import columns, on_one_line
from ckpt.errors import Usage
from ckpt.flow.extents import TaskMemory
from ckpt.flow.memory import StoredMemory
from ckpt.flow.searching import Match, Pattern, search
from ckpt.host.sparse_file import sparse_file
from ckpt.model.memory import Area, Backing
from ckpt.units import PAGE_BYTES, human_bytes

_JSON_BYTES_MAX: Final = 16 << 20


def show_areas(call: Call, memory: StoredMemory, tasks: Iterable[TaskMemory]) -> None:
    """What each process had mapped, and how much of it is stored."""
    documents, parts = [], []
    for task in tasks:
        areas = [(area, memory.stored_bytes(task, area)) for area in task.space.areas]
        size = sum(area.size_bytes for area, _ in areas)
        stored = sum(each for _, each in areas)
        documents.append(
            {
                "pid": task.pid,
                "pids": list(task.pids),
                "name": task.name,
                "size_bytes": size,
                "stored_bytes": stored,
                "areas": [_area(area) | {"stored_bytes": each} for area, each in areas],
            }
        )
        rows = [
            (
                f"{area.start:#x}",
                f"{area.end:#x}",
                area.permissions,
                human_bytes(area.size_bytes),
                human_bytes(each),
                area.kind.value,
                area.path,
            )
            for area, each in areas
        ]
        header = ("START", "END", "PERMS", "SIZE", "STORED", "KIND", "PATH")
        parts.append(
            f"{_pids(task)}  {on_one_line(task.name)}  {human_bytes(size)} mapped, {human_bytes(stored)} stored\n"
            + columns(header, rows)
        )
    call.output.result({"id": memory.id, "tasks": documents}, "\n\n".join(parts))


def show_range(call: Call, memory: StoredMemory, task: TaskMemory, addresses: tuple[int, int]) -> None:
    """The bytes at these addresses as `hexdump -C` shows them; what is not stored is said.

    Raises:
        Usage: too much for JSON.
    """
    extents = memory.extents(task, *addresses)
    if not call.json:
        _write_lines(hexdump(memory, extents))
        return
    parts, left = [], _JSON_BYTES_MAX
    for extent in extents:
        part: dict[str, Any] = {
            "start": extent.start,
            "end": extent.end,
            "backing": extent.backing.value,
            "kind": None if extent.area is None else extent.area.kind.value,
            "path": "" if extent.area is None else extent.area.path,
        }
        if extent.backing is Backing.FILE:
            part["offset"] = extent.offset
        if extent.backing is Backing.STORED:
            left -= extent.size_bytes
            if left < 0:
                raise Usage(
                    problem=f"The range has more than {human_bytes(_JSON_BYTES_MAX)} of stored bytes, too many for JSON.",
                    remedy="Write them into a file with -o.",
                )
            part["hex"] = b"".join(memory.read(extent)).hex()
        parts.append(part)
    start, end = addresses
    call.output.result({"id": memory.id, "pid": task.pid, "start": start, "end": end, "parts": parts}, "")


def write_raw(
    call: Call, memory: StoredMemory, task: TaskMemory, addresses: tuple[int, int], file: str | None
) -> None:
    """The bytes themselves; nothing is written if some of them are not in the checkpoint.

    Raises:
        Usage: some are in a file that is not in it, or nowhere.
        OsRefused: the file cannot be written; what was there stays.
    """
    if file is None and call.json:
        raise usage("--raw writes no JSON document: leave out --json, or name a file with -o.")
    if file is None and sys.stdout.isatty():
        raise usage("Raw bytes do not go to a terminal: name a file with -o, or redirect the output.")
    for extent in memory.extents(task, *addresses):
        if extent.backing in {Backing.FILE, Backing.ABSENT}:
            raise Usage(
                problem=f"Not all of the range is in the checkpoint: at {extent.start:#x}, {in_words(extent)}.",
                remedy="See without --raw and -o which parts are stored, and narrow the range.",
            )
    extents = memory.extents(task, *addresses)
    start, end = addresses
    if file is None:
        for part in plain_bytes(memory, extents):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    with sparse_file(os.path.realpath(file), end - start) as target:
        for extent in extents:
            place = extent.start - start
            if extent.backing is Backing.STORED:
                for part in memory.read(extent):
                    target.write(place, part)
                    place += len(part)
    document = {"id": memory.id, "pid": task.pid, "start": start, "end": end, "file": file}
    call.output.result(document, f"{human_bytes(end - start)} are now in {file}", brief="")


def show_matches(
    call: Call,
    memory: StoredMemory,
    tasks: Iterable[TaskMemory],
    pattern: Pattern,
    *,
    limit: int | None,
    strings: bool,
) -> None:
    """Each match with its process and address; at most `limit` of them."""
    found = search(memory, tasks, pattern)
    shown = itertools.islice(found, limit)
    if call.json:
        documents = [_match(match, strings=strings) for match in shown]
        truncated = limit is not None and len(documents) == limit and next(found, None) is not None
        name = "strings" if strings else "matches"
        call.output.result({"id": memory.id, name: documents, "truncated": truncated}, "")
        return
    count = _write_lines(_text_line(match) if strings else _match_line(match) for match in shown)
    if limit is not None and count == limit and next(found, None) is not None:
        call.output.warn(f"there are more than {limit}; --limit N shows more.")
    if not count:
        call.output.warn("nothing was found.")


def _match(match: Match, *, strings: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "pid": match.task.pid,
        "name": match.task.name,
        "address": match.address,
        "kind": None if match.area is None else match.area.kind.value,
        "path": "" if match.area is None else match.area.path,
        "text": match.content.decode("utf-8", "backslashreplace"),
    }
    if not strings:
        document |= {
            "hex": match.content.hex(),
            "before_hex": match.before.hex(),
            "after_hex": match.after.hex(),
        }
    return document


def _match_line(match: Match) -> str:
    where = "" if match.area is None else f"{match.area.kind.value} {match.area.path}".rstrip()
    around = match.before[-LINE_BYTES:] + match.content + match.after
    return f"{match.task.pid}  {match.address:#x}  {on_one_line(where)}  {printable(around)}"


def _text_line(match: Match) -> str:
    return f"{match.task.pid}  {match.address:#x}  {match.content.decode('utf-8', 'backslashreplace')}"


def _area(area: Area) -> dict[str, Any]:
    return {
        "start": area.start,
        "end": area.end,
        "permissions": area.permissions,
        "kind": area.kind.value,
        "path": area.path,
        "offset": area.offset,
        "size_bytes": area.size_bytes,
    }


def _pids(task: TaskMemory) -> str:
    return ", ".join(map(str, task.pids))


def _write_lines(lines: Iterable[str]) -> int:
    """Write the lines as they come; gives how many there were."""
    count = 0
    lines = iter(lines)
    while batch := list(itertools.islice(lines, PAGE_BYTES)):
        click.echo("\n".join(batch).encode("utf-8", "surrogateescape"))
        count += len(batch)
    return count
