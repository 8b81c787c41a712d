"""What periodic checkpoints cost a job that computes all the time: `ckpt run --every 10s` beside the bare command.

All run the same work, in turns; the job itself says how long it took. The goal: with the usual share of time frozen
(--max-frozen 1%) the job takes less than 3 % longer. With 100 % the interval is what --every says. The peer is what a
script would do: a bare `criu dump --leave-running` every 10 s, whose images stay as they are. On a busy machine the
column "by itself" says what the checkpoints cost: the time frozen, and what more of the processor the job needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dumps
from meter import flush
from rounds import claim_memory, stored_bytes

HERE = Path(__file__).resolve().parent
CKPT = str(Path(sys.executable).with_name("ckpt"))
GOAL_PERCENT = 3.0
EVERY_S = 10
MIB = 1 << 20
CALIBRATION_UNITS = 1000
BARE, USUAL, OFTEN, CRIU = "bare", "ckpt, 1 %", "ckpt, 100 %", "criu in a loop"
MAX_FROZEN = {USUAL: "1%", OFTEN: "100%"}


@dataclass(frozen=True)
class Work:
    """What the job does: SIZE_MIB of memory, so many units, so many pages changed in each."""

    program: Path
    size_mib: int
    units: int
    pages_per_unit: float

    def command(self) -> list[str]:
        return [str(self.program), str(self.size_mib), str(self.units), f"{self.pages_per_unit:.6f}"]


@dataclass(frozen=True)
class Run:
    """One run: how long the work took, and the checkpoints meanwhile: when, how long it stood still, and what was stored.

    `stored_bytes` is what they all take on the disk.
    """

    seconds: float
    cpu_seconds: float
    began_s: tuple[float, ...] = ()
    frozen_ms: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    stored_bytes: int = 0

    @property
    def intervals_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.began_s)]


def register(commands: Any) -> None:
    parser = commands.add_parser("run", help="slow-down of a job of 1 GiB by `ckpt run --every 10s`")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the job (default: 1024)")
    parser.add_argument("--seconds", type=int, default=120, help="length of its work (default: 120)")
    parser.add_argument("--rounds", type=int, default=3, help="of bare and ckpt, in turns (default: 3)")
    parser.add_argument(
        "--touched",
        default="1,10",
        help="shares of its memory changed in a second, in percent (default: 1,10)",
    )
    parser.add_argument(
        "--directory", default="/var/tmp", help="where store and images go (default: /var/tmp)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench run: this needs root.", file=sys.stderr)
        return 10
    met = True
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="ckpt-bench-") as place:
        program = Path(place, "busy")
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, HERE / "busy.c"], check=True)
        # By the time of the processor: others may use this machine, too.
        calibration = bare(Work(program, 1, CALIBRATION_UNITS, 0), Path(place))
        units_per_s = CALIBRATION_UNITS / calibration.cpu_seconds
        for percent in map(float, arguments.touched.split(",")):
            pages_per_s = arguments.size * 256 * percent / 100
            work = Work(
                program, arguments.size, int(arguments.seconds * units_per_s), pages_per_s / units_per_s
            )
            runs = measure(work, Path(place), arguments.rounds)
            print(
                f"\na job of {work.size_mib} MiB that changes {percent:g} % of it in a second, about "
                f"{arguments.seconds} s of work, every {EVERY_S} s; load {os.getloadavg()[0]:.1f}\n"
            )
            show(runs)
            slower = slow_down(runs[USUAL], runs[BARE])
            is_met = slower < GOAL_PERCENT
            met = met and is_met
            print(
                f"\n{'met' if is_met else 'missed'}: {percent:g} %/s: less than {GOAL_PERCENT:g} % slower with "
                f"--every {EVERY_S}s: {slower:.2f} %"
            )
    return 0 if met else 1


def measure(work: Work, place: Path, rounds: int) -> dict[str, list[Run]]:
    """Bare and ckpt in so many rounds, which begin with another one each time; the others once."""
    ways: dict[str, Callable[[], Run]] = {
        BARE: lambda: bare(work, place),
        USUAL: lambda: supervised(work, place, MAX_FROZEN[USUAL]),
        OFTEN: lambda: supervised(work, place, MAX_FROZEN[OFTEN]),
        CRIU: lambda: criu(work, place),
    }
    found: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(rounds):
        turns = (BARE, USUAL) if number % 2 == 0 else (USUAL, BARE)
        for name in (*turns, *((OFTEN, CRIU) if number == 0 else ())):
            if sys.stderr.isatty():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            flush(str(place))
            claim_memory(3 * work.size_mib * MIB)
            found[name].append(ways[name]())
    return found


def bare(work: Work, place: Path) -> Run:
    return _run_of(
        subprocess.run(work.command(), check=True, capture_output=True, cwd=place, text=True).stdout
    )


def supervised(work: Work, place: Path, max_frozen: str) -> Run:
    """Under ckpt, in a store of its own; all its checkpoints stay until they are counted."""
    own = place / "ckpt"
    own.mkdir()
    environment = os.environ | {"CKPT_STATE": str(own / "state"), "CKPT_STORE": str(own / "store")}
    name = f"bench-{secrets.token_hex(3)}"
    options = ["--every", f"{EVERY_S}s", "--max-frozen", max_frozen, "--keep", "0", "--at-end", "keep"]

    def ckpt(*words: str) -> str:
        return subprocess.run(
            [CKPT, *words],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ).stdout

    try:
        took = _run_of(ckpt("run", "--name", name, *options, "--", *work.command()))
        listed = json.loads(ckpt("list", "--json"))["checkpoints"]
        ckpt("rm-job", name)
        return Run(
            seconds=took.seconds,
            cpu_seconds=took.cpu_seconds,
            began_s=tuple(datetime.fromisoformat(each["created"]).timestamp() for each in listed),
            frozen_ms=tuple(each["frozen_ms"] for each in listed),
            sizes=tuple(each["stored_bytes"] for each in listed),
            stored_bytes=stored_bytes(own / "store"),
        )
    finally:
        shutil.rmtree(own)


def criu(work: Work, place: Path) -> Run:
    """A bare dump every EVERY_S, as long as the job runs; the images of the last one stay until the next is made."""
    images = place / "images"
    began_s: list[float] = []
    frozen_ms: list[float] = []
    sizes: list[int] = []
    process = subprocess.Popen(
        work.command(), cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        due = time.monotonic() + EVERY_S
        while True:
            try:
                process.wait(max(0.0, due - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                due += EVERY_S
            shutil.rmtree(images, ignore_errors=True)
            began = time.time()
            try:
                dumps.dump(process.pid, images)
            except subprocess.CalledProcessError:
                if process.poll() is None:
                    raise
                break
            began_s.append(began)
            frozen_ms.append((time.time() - began) * 1000)
            sizes.append(dumps.image_bytes(images))
        took = _run_of(process.stdout.read().decode())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        shutil.rmtree(images, ignore_errors=True)
    return Run(
        seconds=took.seconds,
        cpu_seconds=took.cpu_seconds,
        began_s=tuple(began_s),
        frozen_ms=tuple(frozen_ms),
        sizes=tuple(sizes),
        stored_bytes=sum(sizes),
    )


def show(runs: dict[str, list[Run]]) -> None:
    print(
        "| way | seconds | slower than bare | by itself | checkpoints | every s | frozen ms | first MiB "
        "| each later MiB | all MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, found in runs.items():
        last = found[-1]
        first, *later = last.sizes or (0,)
        cells = [
            name,
            f"{statistics.median(each.seconds for each in found):.1f}",
            "" if name == BARE else f"{slow_down(found, runs[BARE]):.2f} %",
            "" if name == BARE else f"{own_cost(found, runs[BARE]):.2f} %",
            f"{len(last.frozen_ms)}",
            _few(last.intervals_s),
            _few(last.frozen_ms),
            f"{first / MIB:.0f}" if last.sizes else "",
            _few([size / MIB for size in later]),
            f"{last.stored_bytes / MIB:.0f}" if last.sizes else "",
        ]
        print(f"| {' | '.join(cells)} |")


def slow_down(found: list[Run], bare_ones: list[Run]) -> float:
    """The median of the rounds' ratios, in percent: what disturbs one round disturbs both."""
    pairs = zip(found, bare_ones, strict=False)
    return (statistics.median(each.seconds / other.seconds for each, other in pairs) - 1) * 100


def own_cost(found: list[Run], bare_ones: list[Run]) -> float:
    """The same by what nobody else is to blame for: standing still, and more time of the processor than bare."""
    pairs = zip(found, bare_ones, strict=False)
    return 100 * statistics.median(
        (each.cpu_seconds - other.cpu_seconds + sum(each.frozen_ms) / 1000) / other.cpu_seconds
        for each, other in pairs
    )


def _run_of(output: str) -> Run:
    seconds, cpu_seconds = map(float, output.split())
    return Run(seconds=seconds, cpu_seconds=cpu_seconds)


def _few(numbers: list[float] | tuple[float, ...]) -> str:
    """Few of them as they are, many as least, median and most."""
    if len(numbers) <= 4:
        return ", ".join(f"{number:.0f}" for number in numbers)
    return f"{min(numbers):.0f} … {statistics.median(numbers):.0f} … {max(numbers):.0f}"
