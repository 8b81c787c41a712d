"""Run one command and say what it took: a slim program of its own, so that no peak but the command's counts.

Usage: meter.py RESULT DURABLE -- COMMAND…

RESULT is a file that gets one JSON object. DURABLE is a directory whose file system is flushed within the time
measured, or "-". A command's peak is that of the largest of its processes; this one itself has about 10 MiB.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time


def main() -> int:
    result, durable, _, *command = sys.argv[1:]
    began = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if durable != "-":
        flush(durable)
    seconds = time.monotonic() - began
    with open(result, "w", encoding="utf-8") as file:
        json.dump(
            {
                "seconds": seconds,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_mib": usage.ru_maxrss / 1024,
            },
            file,
        )
    return os.waitstatus_to_exitcode(status)


def flush(directory: str) -> None:
    """Make everything that was written to this directory's file system durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs", directory)
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
