"""What a restored workload pays for seeing its files' old identities, by each way of keeping them.

The same program runs once as it was started, and once restored by each way, all at the same time; in every round each
measures itself in turn: stat, fstat, open and close, reads and writes of 4 KiB from the page cache, transactions of
sqlite (WAL with synchronous=NORMAL, rollback journal with synchronous=OFF). Printed are operations a second of the
program that was never dumped, and the others as shares of that: the medians of the rounds' shares.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "images/subjects"))

import orders

HERE = Path(__file__).resolve().parent
CKPT = Path(sys.executable).with_name("ckpt")
READY_S = 20
VOLUME_MIB = 128
MEASURES = {
    "stat": "stat",
    "fstat": "fstat",
    "open": "open + close",
    "read": "read 4 KiB",
    "write": "write 4 KiB",
    "wal": "sqlite WAL",
    "rollback": "sqlite rollback",
}

Rates = dict[str, float]


class Life(Enum):
    """What a program goes through before it is measured."""

    STARTED = "started"
    ON_A_VOLUME = "started on a volume"
    RESTORED = "restored"


@dataclass(frozen=True)
class Way:
    """How a workload came to see its identities: `method` is the one way to keep them that its restore may use."""

    name: str
    life: Life
    method: str = "same"
    patch: bool = True


NATIVE = Way("native", Life.STARTED)
WAYS = (
    Way("restored, the same files", Life.RESTORED),
    Way("pinned", Life.RESTORED, "pinned"),
    Way("placed", Life.RESTORED, "placed"),
    Way("virtual, libc patched", Life.RESTORED, "virtual"),
    Way("virtual, supervisor alone", Life.RESTORED, "virtual", patch=False),
    Way("volume", Life.ON_A_VOLUME),
)


class UnavailableError(Exception):
    """This way cannot be measured here; the text says why."""


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "inodes",
        help="stat, open, read, write and sqlite by each way of keeping inode numbers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: scripts/bench inodes --rounds 3",
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: 7)")
    parser.add_argument(
        "--measure-ms", type=int, default=150, help="how long each is measured (default: 150)"
    )
    parser.add_argument("--directory", default="/var/tmp", help="where the files are (default: /var/tmp)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench inodes: this needs root.", file=sys.stderr)
        return 10
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    problems: list[str] = []
    try:
        rounds = measure(arguments, problems)
    except KeyboardInterrupt:
        print("scripts/bench inodes: interrupted; everything it made is removed.", file=sys.stderr)
        return 130
    print(table(rounds))
    for problem in problems:
        print(f"scripts/bench inodes: not measured: {problem}", file=sys.stderr)
    return 1 if problems else 0


def measure(arguments: argparse.Namespace, problems: list[str]) -> list[dict[Way, Rates]]:
    """The rates of every way that can be had, round by round; why the others cannot goes to `problems`."""
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="ckpt-bench-") as place,
        ExitStack() as stack,
    ):
        bench = Bench(Path(place))
        programs: dict[Way, Path] = {}
        for way in (NATIVE, *WAYS):
            try:
                programs[way] = stack.enter_context(bench.program(way))
            except UnavailableError as error:
                problems.append(f"{way.name}: {error}")
        return [a_round(programs, number, arguments.measure_ms) for number in range(arguments.rounds)]


def a_round(programs: dict[Way, Path], number: int, milliseconds: int) -> dict[Way, Rates]:
    """Each in turn, another one first in every round."""
    ways = list(programs)
    turn = number % len(ways)
    return {way: asked(programs[way], "measure", milliseconds) for way in ways[turn:] + ways[:turn]}


def table(rounds: list[dict[Way, Rates]]) -> str:
    lines = [
        f"medians of {len(rounds)} rounds; native in operations a second, the others as shares of native\n",
        f"| way | {' | '.join(MEASURES.values())} |",
        f"|---{'|---' * len(MEASURES)}|",
    ]
    for way in rounds[0]:
        shares = [
            f"{statistics.median(each[way][name] for each in rounds):,.0f}"
            if way is NATIVE
            else f"{statistics.median(each[way][name] / each[NATIVE][name] for each in rounds):.1%}"
            for name in MEASURES
        ]
        lines.append(f"| {way.name} | {' | '.join(shares)} |")
    return "\n".join(lines)


class Bench:
    """Where the programs live, with a store and a state of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._environ = os.environ | {"CKPT_STORE": f"{place}/store", "CKPT_STATE": f"{place}/state"}
        self._library = place / "rates.so"
        command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(HERE / "rates.c")]
        subprocess.run(command, check=True)

    @contextmanager
    def program(self, way: Way) -> Iterator[Path]:
        """A job that sees its files by this way; gives how it is asked.

        Raises:
            UnavailableError: it cannot be had so.
        """
        folder = self._place / way.name.replace(", ", "-").replace(" ", "-")
        files, control = folder / "files", folder / "control"
        for path in (files, control):
            path.mkdir(parents=True)
        name = f"bench-{secrets.token_hex(3)}"
        volume = ["--volume", f"{files}:{VOLUME_MIB}M"] if way.life is Life.ON_A_VOLUME else []
        command = [sys.executable, str(HERE / "rates.py"), str(files), str(control), str(self._library)]
        try:
            self._ckpt("run", "--detach", "--name", name, *volume, "--", *command)
            await_file(control / "answer")
            if way.life is Life.RESTORED:
                self._move(name, way, files)
            if not asked(control, "check")["same"]:
                raise UnavailableError("it sees other identities than before")
            yield control
        finally:
            self._ckpt("rm-job", name, "--force", check=False)

    def _move(self, name: str, way: Way, files: Path) -> None:
        """Dump it, replace every file by a copy if it is not to be the same, restore it."""
        if way.method == "same":
            self._ckpt("dump", name, "--stop")
            self._ckpt("restore", name)
            return
        environ = {"CKPT_INODE_METHODS": way.method, "CKPT_INODE_PATCH": "yes" if way.patch else "no"}
        # Not only the restore must know: a file that is pinned at the dump keeps its number from every other.
        self._ckpt("dump", name, "--stop", environ=environ)
        for file in list(files.iterdir()):
            copy = file.with_name(f"{file.name}.copy")
            shutil.copy2(file, copy)
            copy.rename(file)
        restored = self._ckpt("restore", name, environ=environ)
        outcomes = {outcome["path"]: outcome["method"] for outcome in restored.get("inodes", [])}
        if (method := outcomes.get(f"{files}/file", "none")) != way.method:
            raise UnavailableError(f"the restore's method was {method}")

    def _ckpt(self, *words: str, check: bool = True, environ: dict[str, str] | None = None) -> dict[str, Any]:
        done = subprocess.run(
            [CKPT, words[0], "--json", *words[1:]],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self._environ | (environ or {}),
        )
        if done.returncode and check:
            raise UnavailableError((done.stdout or done.stderr).strip())
        document: dict[str, Any] = json.loads(done.stdout or "{}")
        return document


def asked(control: Path, order: str, count: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = orders.ask(str(control), order, count)
    if "error" in answer:
        sys.exit(f"scripts/bench inodes: a program says: {answer['error']}")
    return answer


def await_file(path: Path) -> None:
    end = time.monotonic() + READY_S
    while not path.exists():
        if time.monotonic() > end:
            raise UnavailableError("the program did not start")
        time.sleep(0.01)
