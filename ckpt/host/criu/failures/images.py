"""Image files, space and memory."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import AGAIN, Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"No space left on device",
        "no space is left where the images are written",
        "Free some space there, or choose another place (CKPT_STATE).",
    ),
    row(
        r"Can't open dir (?P<path>.+?)(?:: (?P<reason>.*))?$",
        "the directory of the images, {path}, cannot be opened",
        "Make it, or give another.",
    ),
    row(
        r"Unexpected EOF on \(?(?P<name>[^)]*)\)?",
        "an image file is missing or ends too early ({name})",
        AGAIN,
    ),
    row(
        r"Read (?P<found>\d+) bytes while (?P<expected>\d+) expected from (?P<name>\S+)",
        "the image file {name} is cut off",
        AGAIN,
    ),
    row(
        r"(?:Head magic|Magic) doesn't match for (?P<name>\S+)",
        "the image file {name} is damaged: it does not begin as it must",
        AGAIN,
    ),
    row(
        r"Can't read pages data",
        "the file with the memory's pages is missing or too short",
        AGAIN,
    ),
    row(
        r"`- returned 0$|Preadv .* returned 0\b",
        "the file with the memory's pages is cut off, and CRIU reads on for ever",
        AGAIN,
    ),
    row(
        r"Can't chose service_fd_base: (?P<limit>\d+) (?P<needed>\d+)",
        "the limit of open files ({limit}) is too low for the workload, which needs about {needed}",
        "Raise the hard limit of open files (ulimit -Hn) where ckpt runs.",
    ),
    row(
        r"[Ii]mage corrupti?on|Images corrupted|corrupted image|Image corrupted",
        "an image file contradicts another one: it is damaged, or belongs to another dump",
        AGAIN,
    ),
    row(
        r"Unable to reserve memory \((?P<bytes>\d+) bytes\)",
        "the workload needs {bytes} bytes of memory in one process, more than can be had here",
        "Free memory, or raise memory.max of the cgroup and the limit of address space (ulimit -v).",
    ),
    row(
        r"Cannot allocate memory",
        "there is too little memory for it here, or in its cgroup",
        "Free memory, or raise memory.max of the cgroup.",
    ),
)
