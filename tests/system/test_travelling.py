"""A job that travels between hosts on which every file has another identity: to it, they are the same files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.lab import Host
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

ROUNDS = 10
# On the hosts' own mounts: there a copy has another device and another number.
HOME = "/var/lib/travelling"

CHECK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print(*database.execute("PRAGMA integrity_check").fetchone(), *database.execute("SELECT count(*) FROM rows").fetchone())
"""

PROGRAM = """
import json, os, sqlite3, sys, time
home, shared = sys.argv[1:]
database = sqlite3.connect(home + "/rows.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("CREATE TABLE rows (number INTEGER)")
held = open(home + "/log", "a")
inside, outside = os.pipe()

def identities():
    paths = [home, home + "/rows.db", home + "/rows.db-wal", home + "/log", sys.executable, "/"]
    found = {path: os.stat(path) for path in paths} | {"log": os.fstat(held.fileno()), "pipe": os.fstat(inside)}
    return {name: [status.st_dev, status.st_ino] for name, status in found.items()}

for number in range(1 << 30):
    while not os.path.exists(f"{shared}/go-{number}"):
        time.sleep(0.01)
    database.execute("INSERT INTO rows VALUES (?)", (number,))
    # The moment of truth: sqlite finds its locks by device and inode.
    second = sqlite3.connect(home + "/rows.db")
    second.execute("SELECT count(*) FROM rows").fetchone()
    second.close()
    database.execute("INSERT INTO rows VALUES (?)", (number,))
    with open(f"{shared}/new", "w") as stream:
        json.dump({"identities": identities(), "rows": database.execute("SELECT count(*) FROM rows").fetchone()[0]}, stream)
    os.rename(f"{shared}/new", f"{shared}/done-{number}")
"""


def test_ten_rounds_over_two_hosts_change_no_identity_and_lose_no_row(traces: Traces, ckpt: Ckpt) -> None:
    shared = traces.folder / "shared"
    shared.mkdir()
    (shared / "program.py").write_text(PROGRAM)
    hosts = [Host(traces, name, monotonic_s=100_000, boottime_s=200_000) for name in ("one", "two")]
    hosts[0].trust(hosts[1], ckpt)
    hosts[1].trust(hosts[0], ckpt)
    for host in hosts:
        host.run("mkdir", HOME)
    job = ckpt.new_job_name()
    program = (sys.executable, "-I", "-S", shared / "program.py", HOME, shared)
    hosts[0].ckpt(ckpt, "run", "--detach", "--name", job, "--log", shared / "output", "--", *program)

    first = step(shared, 0)
    for number in range(1, ROUNDS + 1):
        source, target = hosts[(number + 1) % 2], hosts[number % 2]
        dumped = source.ckpt(ckpt, "dump", job, "--stop")
        move_files(source, target, shared)
        restored = target.ckpt(ckpt, "restore", dumped["id"])
        wrong = [each for each in restored["inodes"] if each["seen"] != each["recorded"]]
        assert not wrong
        methods = {each["path"]: each["method"] for each in restored["inodes"]}
        assert methods[f"{HOME}/rows.db"] == "virtual"
        after = step(shared, number)
        assert after["identities"] == first["identities"]
        assert after["rows"] == 2 * (number + 1)
    last = hosts[ROUNDS % 2]
    dumped = last.ckpt(ckpt, "dump", job, "--stop")
    done = last.run(sys.executable, "-I", "-c", CHECK, f"{HOME}/rows.db")
    assert done.stdout.split() == ["ok", str(2 * (ROUNDS + 1))]


def step(shared: Path, number: int) -> dict[str, Any]:
    """Let the job do its next step, and give what it says of it."""
    (shared / f"go-{number}").touch()
    done = shared / f"done-{number}"
    await_condition(done.exists, f"step {number}: {(shared / 'output').read_text()}")
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def move_files(source: Host, target: Host, shared: Path) -> None:
    """Copy the job's files to the other host, as rsync would: each becomes another inode."""
    source.run("rm", "-rf", str(shared / "luggage"))
    source.run("cp", "-a", HOME, str(shared / "luggage"))
    target.run("sh", "-c", f"rm -f {HOME}/* && cp -a {shared}/luggage/. {HOME}/")
