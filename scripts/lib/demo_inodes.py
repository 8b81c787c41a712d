"""The story of scripts/demo-inodes: the same life twice, without and with the identities of its files.

Rule: every command that is shown is run just as it is shown, and what it prints is shown.
Rule: nothing is claimed that was not read: from the job's own answers, or from its files when it had ended.
Rule: whatever happens, the jobs, their checkpoints and their files are removed.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import CKPT, ENDING_SIGNALS, INTERRUPTION, DemoError, await_condition, chapter, remove, say, show

SUBJECTS = Path(__file__).parents[2] / "images/subjects"
PYTHON = "/usr/bin/python3"
ROUNDS = 2
ROWS_A_ROUND = 5
# What must be seen to break without the identities, each with words that the job says then.
FAILURES = {
    "rollback journal": "readonly database",
    "watched log": "opened 2 time(s)",
    "tail -F, polling": "printed again",
    "cache": "not known",
    "hard link": "a file of its own",
    "fstat": "",
    "static program": "wrong answers",
}
METHODS = {
    "same": "are the same files still",
    "pinned": "are the very inodes, kept under a second name and put back",
    "placed": "are copies that were given the old inode numbers",
    "virtual": "have other numbers, and the job's calls are answered with the old ones",
    "fuse": "show their old inode numbers on another device",
    "none": "have other numbers, and the job sees them",
}
# A directory's entries come from the file system itself; see docs/inodes.md.
OF_DIRECTORIES = "listing"
CALLS = {
    "stat",
    "lstat",
    "fstatat",
    "statx",
    "system call",
    "fstat",
    "fstatx",
    "/proc/self/fd",
    OF_DIRECTORIES,
}

Finding = dict[str, Any]


@dataclass
class Life:
    """What one job said of itself, restored by one policy."""

    policy: str
    wrong: list[Finding] = field(default_factory=list)
    virtual: set[int] = field(default_factory=set)
    committed: int = 0
    found: int = 0
    verdict: str = ""


def main() -> int:
    """Tell the story; the exit code says whether it ended as it must."""
    for number in ENDING_SIGNALS:
        signal.signal(number, INTERRUPTION.come)
    for variable in ("CKPT_STORE", "CKPT_STATE"):
        os.environ.pop(variable, None)
    try:
        without, kept = live("ignore"), live("keep")
        compare(without, kept)
        judge(without, kept)
    except DemoError as error:
        print(f"\nscripts/demo-inodes: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nscripts/demo-inodes: interrupted; the job and its checkpoints are removed.", file=sys.stderr)
        return 130
    return 0


def live(policy: str) -> Life:
    """One job's life, from its start to its end."""
    life = Life(policy)
    with a_victim() as victim:
        chapter(
            f"--inodes {policy}: a job starts, and remembers the device and inode numbers of all that it holds."
        )
        victim.start()
        say("what it checks", f"{len(victim.check())} properties, all of them right")
        if wrong := [finding for finding in victim.check() if not finding["right"]]:
            raise DemoError(f"the job finds itself wrong before anything was done: {wrong}")
        for number in range(1, ROUNDS + 1):
            a_round(number, victim, life)
        chapter("It is ended, and its database is read from outside.")
        life.committed = victim.order("check")["rows"]["wal"]
        show("stop", victim.name)
        life.found, life.verdict = victim.rows()
        say("rows it committed", life.committed)
        say("rows in its database", f"{life.found}; sqlite's integrity_check: {life.verdict}")
    return life


def a_round(number: int, victim: Victim, life: Life) -> None:
    """Dump, replace the files, restore, look."""
    chapter(
        f"Round {number}: it is dumped and killed, and its files are replaced by copies, as a backup would."
    )
    show("dump", victim.name, "--stop")
    before = victim.notes()
    victim.replace_files()
    say("one of its files", f"had inode {before}, has inode {victim.notes()}")

    chapter(f"It is restored with --inodes {life.policy}.")
    outcomes = victim.restore(life.policy)
    life.virtual |= {outcome["recorded"]["inode"] for outcome in outcomes if outcome["method"] == "virtual"}
    for method, count in Counter(outcome["method"] for outcome in outcomes).items():
        say(f"{count} files", METHODS[method])
    findings = victim.check()
    tell(findings, life)
    victim.order("second")
    victim.order("write", ROWS_A_ROUND)
    say("then", f"it opens its database once more, closes that again, and commits {ROWS_A_ROUND} rows")


def tell(findings: list[Finding], life: Life) -> None:
    """What the job finds wrong with itself, the numbers that many calls give in one line."""
    wrong = [finding for finding in findings if not finding["right"]]
    excused = [
        finding for finding in wrong if finding["name"] == OF_DIRECTORIES and inode(finding) in life.virtual
    ]
    wrong = [finding for finding in wrong if finding not in excused]
    life.wrong += wrong
    say("what it finds wrong", f"{len(wrong)} of {len(findings)} properties")
    numbers = [finding for finding in wrong if finding["name"] in CALLS]
    if numbers:
        say("  numbers", f"{len(numbers)} of them, by stat and its kin; {described(numbers[0])}")
    for finding in wrong:
        if finding not in numbers:
            say(f"  {finding['name']}", described(finding))
    if excused:
        say(
            "  listings",
            f"{len(excused)} of its directories' entries show the real inode numbers (docs/inodes.md)",
        )


def inode(finding: Finding) -> int:
    """The number that it had."""
    return int(finding["was"].split()[1])


def described(finding: Finding) -> str:
    text = f"{os.path.basename(finding['of'])}: {finding['was']} → {finding['now']}"
    return text if len(text) <= 110 else f"{text[:109]}…"


def compare(without: Life, kept: Life) -> None:
    """Both lives side by side."""
    chapter("Both side by side.")
    columns = [Counter(finding["name"] for finding in life.wrong) for life in (without, kept)]
    print(f"   {'wrong answers, in both rounds':<30} {'ignore':>8} {'keep':>8}")
    for name in sorted(columns[0] | columns[1], key=lambda name: -columns[0][name]):
        print(f"   {name:<30} {columns[0][name]:>8} {columns[1][name]:>8}")
    for life in (without, kept):
        lost = life.committed - life.found
        say(f"rows lost by {life.policy}", f"{lost} of {life.committed}; integrity_check: {life.verdict}")


def judge(without: Life, kept: Life) -> None:
    """Whether it all was as this demo says.

    Raises:
        DemoError: it was not.
    """
    for name, words in FAILURES.items():
        if not any(finding["name"] == name and words in finding["now"] for finding in without.wrong):
            raise DemoError(f"without the identities, this should have failed, and did not: {name}")
    if without.found >= without.committed or without.verdict != "ok":
        raise DemoError("without the identities, rows should have been lost in silence, and were not")
    if kept.wrong:
        raise DemoError(f"with the identities kept, the job still found {len(kept.wrong)} properties wrong")
    if (kept.found, kept.verdict) != (kept.committed, "ok"):
        raise DemoError(f"with the identities kept, {kept.committed - kept.found} rows were lost")


class Victim:
    """The job, its folder, and its answers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._files = folder / "files"
        self._control = folder / "control"

    def start(self) -> None:
        self._files.mkdir()
        self._control.mkdir()
        programs = []
        for option, how in {"--stats": [], "--stats-static": ["-static"]}.items():
            program = self._folder / option.strip("-")
            subprocess.run(["gcc", "-O2", *how, "-o", program, SUBJECTS / "stats.c"], check=True)
            programs += [option, str(program)]
        folders = ["--files", str(self._files), "--control", str(self._control)]
        show(
            "run",
            "--detach",
            "--name",
            self.name,
            "--",
            PYTHON,
            f"{SUBJECTS}/identity.py",
            *folders,
            *programs,
        )
        await_condition((self._control / "answer").exists, "the job to be ready")

    def order(self, order: str, rows: int = 0) -> dict[str, Any]:
        """Give it an order, and return its answer."""
        command = [PYTHON, f"{SUBJECTS}/identity.py", "--control", str(self._control), "--ask", order]
        process = INTERRUPTION.start([*command, "--rows", str(rows)])
        answer = INTERRUPTION.await_end(process)
        if process.returncode:
            raise DemoError(f"the job does not answer: {answer}")
        said: dict[str, Any] = json.loads(answer)
        return said

    def check(self) -> list[Finding]:
        findings: list[Finding] = self.order("check")["findings"]
        return findings

    def notes(self) -> int:
        return (self._files / "notes").stat().st_ino

    def replace_files(self) -> None:
        """Put a copy in the place of the folder with everything in it."""
        quoted = shlex.quote(str(self._files))
        command = f"cp -a {quoted} {quoted}.new && rm -r {quoted} && mv {quoted}.new {quoted}"
        print(f"   $ {command}\n", flush=True)
        subprocess.run(["/bin/sh", "-c", command], check=True)

    def restore(self, policy: str) -> list[dict[str, Any]]:
        """Restore it; returns how it sees the old identity of each file."""
        words = ["restore", self.name, "--inodes", policy, "--json"]
        said = self._folder / "restored.json"
        print(f"\n   $ ckpt {shlex.join(words)} >{said}\n", flush=True)
        process = INTERRUPTION.start(["/bin/sh", "-c", 'exec "$@" >"$0"', str(said), str(CKPT), *words])
        if problems := INTERRUPTION.await_end(process):
            print(problems)
        if process.returncode:
            raise DemoError(f"'ckpt restore' ended with exit code {process.returncode}: {said.read_text()}")
        outcomes: list[dict[str, Any]] = json.loads(said.read_text()).get("inodes", [])
        return outcomes

    def rows(self) -> tuple[int, str]:
        with closing(sqlite3.connect(self._files / "wal.db")) as database:
            (rows,) = database.execute("SELECT count(*) FROM facts").fetchone()
            (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        return rows, verdict


@contextmanager
def a_victim() -> Iterator[Victim]:
    """A job with a name and a folder of its own, removed with its checkpoints in the end."""
    name = f"demo-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix="ckpt-demo-", dir="/var/tmp"))
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        yield Victim(name, folder)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    finally:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        remove(name, folder)
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
