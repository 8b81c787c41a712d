"""The program that `scripts/bench inodes` dumps and restores: it measures itself when it is asked to.

Usage: rates.py FILES CONTROL LIBRARY

FILES is a folder of its own; CONTROL is how it is asked (images/subjects/orders.py); LIBRARY is rates.c compiled. The
order "measure" is answered with operations a second by name, "check" with whether its files are as it saw them.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "images/subjects"))

from orders import Answer, serve

ROWS_MAX = 2000


class Rates:
    """Its files, all held open, and the rates of what is done with them."""

    def __init__(self, files: str, library: str) -> None:
        self._file = f"{files}/file"
        Path(self._file).write_bytes(bytes(4096))
        self._held = os.open(self._file, os.O_RDWR)
        self._calls = ctypes.CDLL(library)
        self._wal = self._database(f"{files}/wal.db", "WAL", "NORMAL")
        # What sqlite asks of its file at every transaction is not to drown in waiting for the disk.
        self._rollback = self._database(f"{files}/rollback.db", "DELETE", "OFF")
        self._was = self._identity()
        # The descriptors that these keep must be there before the dump, as a program's are.
        self._measure(0.001)

    def obey(self, order: str, milliseconds: int) -> Answer:
        if order == "check":
            return {"same": self._identity() == self._was}
        return {**self._measure(milliseconds / 1000)}

    def _measure(self, seconds: float) -> dict[str, float]:
        return {
            **{
                name: self._rate_of_calls(name, seconds)
                for name in ("stat", "fstat", "open", "read", "write")
            },
            "wal": rate_of_rows(self._wal, seconds),
            "rollback": rate_of_rows(self._rollback, seconds),
        }

    def _rate_of_calls(self, name: str, seconds: float) -> float:
        function = self._calls[f"rate_{name}"]
        function.restype, function.argtypes = ctypes.c_double, (ctypes.c_char_p, ctypes.c_double)
        rate: float = function(self._file.encode(), seconds)
        if rate < 0:
            raise OSError(f"{name} failed")
        return rate

    def _database(self, path: str, journal: str, synchronous: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute(f"PRAGMA synchronous={synchronous}")
        database.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, text TEXT)")
        return database

    def _identity(self) -> tuple[tuple[int, int], ...]:
        each = (os.stat(self._file), os.fstat(self._held))
        return tuple((status.st_dev, status.st_ino) for status in each)


def rate_of_rows(database: sqlite3.Connection, seconds: float) -> float:
    """Transactions of one row a second; the table does not grow for ever."""
    rows, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds or not rows:
        key = rows % ROWS_MAX
        database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, "some text that is written"))
        rows += 1
    return rows / max(passed, 1e-9)


def main(files: str, control: str, library: str) -> NoReturn:
    serve(control, Rates(files, library).obey)


if __name__ == "__main__":
    main(*sys.argv[1:])
