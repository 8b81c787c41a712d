"""A program that breaks where its files have other device or inode numbers, and says exactly where.

It remembers what every call said of its files, and holds what real programs hold by such numbers: sqlite with a
rollback journal and in WAL mode, a log that is watched for rotation, two `tail -F`, a cache and an archiver's list
of hard links; a mapped file, a locked one, deleted ones, pipes, sockets; processes that ask all the time.

Usage: identity.py --files FOLDER --control FOLDER [--stats PROGRAM] [--stats-static PROGRAM]
       identity.py --control FOLDER --ask ORDER [--rows N]

The first form runs until it is ended. What it holds is in --files, which may be replaced while it is dumped; by
--control it is asked, with the second form, which prints one JSON object. The orders:

    check     every property: {"findings": [{"name", "of", "was", "now", "right"}], "rows": {"rollback", "wal"}}
    write     commit --rows rows to each database
    second    open and close a second connection to the database in WAL mode
    exec      one of the processes becomes a new program
    rotate    rename the watched log; it must be opened anew
"""

from __future__ import annotations

import argparse
import fcntl
import json
import mmap
import os
import secrets
import socket
import subprocess
import sys
import zlib
from collections import defaultdict

from identity_calls import Finding, Identity, Remembered, of_status
from identity_programs import Database, Followers, Log, Stats
from orders import Answer, ask, serve

FIRST_ROWS = 10
CONTENT = b"These words are the same in every copy.\n"


class Victim:
    """Everything that is held, and checked."""

    def __init__(self, files: str, control: str, stats: dict[str, str]) -> None:
        os.makedirs(f"{files}/folder", exist_ok=True)
        os.chdir(files)
        self._files = files
        for name in ("notes", "first-name", "mapped", "locked", "folder/inner"):
            with open(name, "wb") as file:
                file.write(CONTENT)
        os.link("first-name", "second-name")
        self._log = Log(f"{files}/watched.log")
        self._log.write()
        self._rollback = Database(f"{files}/rollback.db", "DELETE")
        self._wal = Database(f"{files}/wal.db", "WAL")
        self._hold()
        # What starts processes comes after what they must not inherit, and before what they are asked about.
        self._followers = Followers(f"{files}/followed.log", control)
        self._stats = {name: Stats(name, program, f"{files}/notes") for name, program in stats.items()}
        self.write(FIRST_ROWS)
        self._remember()

    def _hold(self) -> None:
        self._mapping_fd = os.open("mapped", os.O_RDWR)
        self._mapping = mmap.mmap(self._mapping_fd, len(CONTENT))
        self._lock = os.open("locked", os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._deleted = os.open("deleted", os.O_RDWR | os.O_CREAT)
        os.write(self._deleted, CONTENT)
        os.unlink("deleted")
        self._pipe = os.pipe()
        self._pair = socket.socketpair()
        self._memfd = os.memfd_create("subject")
        os.mkfifo("fifo")
        self._fifo = os.open("fifo", os.O_RDWR)
        self._listening = socket.socket(socket.AF_UNIX)
        # An address of a unix socket is short, the folder's path may be long.
        self._listening.bind("socket")
        self._listening.listen()
        self._read = {name: os.open(name, os.O_RDONLY) for name in ("notes", "first-name", "folder/inner")}
        self._folder = os.open("folder", os.O_RDONLY | os.O_DIRECTORY)

    def _remember(self) -> None:
        names = (
            "notes",
            "first-name",
            "second-name",
            "mapped",
            "locked",
            "folder/inner",
            "folder",
            "fifo",
            "socket",
        )
        logs = ("rollback.db", "wal.db", "wal.db-wal", "wal.db-shm", "followed.log", "watched.log")
        paths = {name: f"{self._files}/{name}" for name in (*names, *logs)} | {"its folder": self._files}
        descriptors = {
            **self._read,
            "mapped": self._mapping_fd,
            "locked": self._lock,
            "folder": self._folder,
            "fifo": self._fifo,
            "a deleted file": self._deleted,
            "a pipe": self._pipe[0],
            "a pair of sockets": self._pair[1].fileno(),
            "a listening socket": self._listening.fileno(),
            "a memfd": self._memfd,
        }
        self._remembered = Remembered(paths, descriptors)
        self._working = of_status(os.stat("."))
        self._cache = {of_status(os.stat(name)): self._digest(name) for name in ("notes", "folder/inner")}
        self._archived = {of_status(os.stat("first-name")): "first-name"}

    def obey(self, order: str, rows: int) -> Answer:
        match order:
            case "check":
                return self.check()
            case "write":
                self.write(rows)
            case "second":
                self._wal.open_and_close_another()
            case "exec":
                for stats in self._stats.values():
                    stats.execute_anew()
            case "rotate":
                self._remembered.forget("watched.log")
                return told([self._log.rotate()])
            case _:
                return {"error": f"there is no order {order}"}
        return {}

    def write(self, rows: int) -> None:
        self._rollback.write(rows)
        self._wal.write(rows)

    def check(self) -> Answer:
        """Every property; rows are written as well, for what cannot write is found so."""
        self.write(1)
        findings = [
            *self._remembered.findings(),
            self._rollback.finding("rollback journal"),
            self._wal.finding("write-ahead log"),
            self._log.finding(),
            *self._followers.findings(),
            *(stats.finding() for stats in self._stats.values()),
            *self._of_lookups(),
            *self._of_holds(),
        ]
        return told(findings) | {
            "rows": {"rollback": self._rollback.committed, "wal": self._wal.committed},
        }

    def _of_lookups(self) -> list[Finding]:
        """What programs decide by these numbers."""
        found = [
            Finding("cache", name, digest, self._cache.get(of_status(os.stat(name)), "not known"))
            for name in ("notes", "folder/inner")
            for digest in [self._digest(name)]
        ]
        link = self._archived.get(of_status(os.stat("second-name")), "a file of its own")
        found.append(Finding("hard link", "second-name", "first-name", link))
        found.append(Finding("working directory", ".", str(self._working), str(of_status(os.stat(".")))))
        done = subprocess.run(
            ["stat", "-c", "%d %i", f"{self._files}/notes"], check=True, stdout=subprocess.PIPE
        )
        asked = Identity(*map(int, done.stdout.split()))
        found.append(Finding("a new process", "notes", str(self._remembered.of("notes")), str(asked)))
        found.append(Finding("distinct", "all files", "first-name, second-name", self._alike()))
        return found

    def _of_holds(self) -> list[Finding]:
        """What is held by a descriptor is still what it was."""
        self._mapping[:4] = secrets.token_bytes(4)
        with open("mapped", "rb") as file:
            mapped = file.read()
        try:
            with open("locked", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock = "free"
        except BlockingIOError:
            lock = "held"
        deleted = os.pread(self._deleted, 2 * len(CONTENT), 0)
        return [
            Finding("mapping", "mapped", self._mapping[:].hex(), mapped.hex()),
            Finding("lock", "locked", "held", lock),
            Finding("deleted content", "a deleted file", CONTENT.decode(), deleted.decode(errors="replace")),
        ]

    def _alike(self) -> str:
        """Names that share an identity, new files among them: no number may be given twice."""
        names = defaultdict(list)
        new = [f"new-{number}" for number in range(16)]
        for name in new:
            with open(name, "xb"):
                pass
        for folder, folders, files in os.walk("."):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                names[of_status(os.lstat(path))].append(os.path.normpath(path))
        names[of_status(os.fstat(self._deleted))].append("a deleted file")
        for name in new:
            os.unlink(name)
        return "; ".join(", ".join(sorted(each)) for each in names.values() if len(each) > 1)

    def _digest(self, name: str) -> str:
        with open(name, "rb") as file:
            return f"{zlib.crc32(file.read()):08x}"


def told(findings: list[Finding]) -> Answer:
    return {"findings": [finding._asdict() | {"right": finding.right} for finding in findings]}


def main(arguments: list[str]) -> int:
    what, _, rest = (__doc__ or "").partition("Usage: ")
    usage, _, how = rest.partition("\n\n")
    parser = argparse.ArgumentParser(
        usage=usage, description=what, epilog=how, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files")
    parser.add_argument("--control", required=True)
    parser.add_argument("--stats")
    parser.add_argument("--stats-static")
    parser.add_argument("--ask", metavar="ORDER")
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.ask:
        answer = ask(options.control, options.ask, options.rows)
        print(json.dumps(answer))
        return 1 if "error" in answer else 0
    if not options.files:
        parser.error("one of --files and --ask is needed")
    stats = {"dynamic program": options.stats, "static program": options.stats_static}
    stats = {name: program for name, program in stats.items() if program}
    return serve(options.control, Victim(options.files, options.control, stats).obey)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
