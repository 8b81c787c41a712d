"""Pipes and FIFOs, and what is in them.

Source: images/pipe.proto, images/pipe-data.proto, images/fifo.proto; criu/pipes.c (dump_one_pipe_data: an entry,
then the bytes), criu/fifo.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.reading.open_files import OpenFiles
from ckpt.model.contents import Holder, Pipe
from ckpt.units import ByteCount


def read_pipes(images: Path, files: OpenFiles, holders: Mapping[int, tuple[Holder, ...]]) -> tuple[Pipe, ...]:
    """The pipes of an image set, FIFOs behind them.

    Args:
        images: The set.
        files: Its open files.
        holders: From the number of an open file to who has it.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    return (
        *_pipes("pipe", _data(images / "pipes-data.img", "PIPES_DATA"), files, holders),
        *_pipes("fifo", _data(images / "fifo-data.img", "FIFO_DATA"), files, holders),
    )


def _pipes(
    field: str, data: Mapping[int, Any], files: OpenFiles, holders: Mapping[int, tuple[Holder, ...]]
) -> list[Pipe]:
    ends: dict[int, list[int]] = {}
    for number, message in files.of_kind(field):
        ends.setdefault(message.pipe_id, []).append(number)
    return [
        Pipe(
            number=pipe,
            path=files.file(numbers[0]).path,
            queued_bytes=ByteCount(data[pipe].bytes if pipe in data else 0),
            capacity_bytes=ByteCount(data[pipe].size)
            if pipe in data and data[pipe].HasField("size")
            else None,
            holders=tuple(holder for number in numbers for holder in holders.get(number, ())),
        )
        for pipe, numbers in ends.items()
    ]


def _data(image: Path, kind: str) -> dict[int, Any]:
    if not image.is_file():
        return {}
    entries = read_entries(image, kind, "pipe_data_entry", extra_bytes=lambda entry: int(entry.bytes))
    return {entry.pipe_id: entry for entry in entries}
