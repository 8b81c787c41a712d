"""How long a workload stands still under `ckpt dump`, beside a bare `criu dump --leave-running` of it.

Both dump the same process, in turns, to the same file system. The goal: frozen_ms at most 1.10 times what the
bare dump takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.host.criu.locate import find_criu

if TYPE_CHECKING:
    from collections.abc import Iterator

GOAL = 1.10
HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sample:
    """One round, in milliseconds."""

    bare_ms: float
    frozen_ms: float
    total_ms: float


def register(commands: Any) -> None:
    parser = commands.add_parser("freeze", help="frozen and total time of a dump against bare criu")
    parser.add_argument("--sizes", default="20,1024", help="sizes of the process in MiB (default: 20,1024)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds for each size (default: 7)")
    parser.add_argument("--directory", default="/var/tmp", help="where the images go (default: /var/tmp)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench freeze: this needs root.", file=sys.stderr)
        return 10
    print(f"medians of {arguments.rounds} rounds, in ms; both dump the same process in turns\n")
    print("| process | bare criu dump | ckpt frozen | frozen / bare | ckpt total | total / bare |")
    print("|---|---|---|---|---|---|")
    met = True
    for size in map(int, arguments.sizes.split(",")):
        samples = measure(size, arguments.rounds, arguments.directory)
        bare = statistics.median(sample.bare_ms for sample in samples)
        frozen = statistics.median(sample.frozen_ms for sample in samples)
        total = statistics.median(sample.total_ms for sample in samples)
        ratio = statistics.median(sample.frozen_ms / sample.bare_ms for sample in samples)
        whole = statistics.median(sample.total_ms / sample.bare_ms for sample in samples)
        met = met and ratio <= GOAL
        print(f"| python, {size} MiB | {bare:.1f} | {frozen:.1f} | {ratio:.2f} | {total:.1f} | {whole:.2f} |")
    print(f"\ngoal: frozen / bare <= {GOAL:.2f}: {'met' if met else 'NOT met'}")
    return 0


def measure(size_mib: int, rounds: int, directory: str) -> list[Sample]:
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="ckpt-bench-") as place,
        ballast(size_mib, place) as pid,
    ):
        # The first of each pays for caches that the others find filled.
        once(pid, place, 0)
        return [once(pid, place, number) for number in range(1, rounds + 1)]


def once(pid: int, place: str, number: int) -> Sample:
    bare_first = number % 2 == 0
    bare_ms = bare(pid, place) if bare_first else 0.0
    report = ours(pid, place)
    if not bare_first:
        bare_ms = bare(pid, place)
    return Sample(bare_ms=bare_ms, frozen_ms=report["frozen_ms"], total_ms=report["total_ms"])


def bare(pid: int, place: str) -> float:
    images = Path(place, "bare")
    images.mkdir()
    command = [
        str(find_criu()), "dump", "--tree", str(pid), "--images-dir", str(images), "--leave-running",
        "--network-lock", "nftables", "--file-locks", "--link-remap", "--log-file", "dump.log", "-v3",
    ]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True)
    took = (time.monotonic() - began) * 1000
    shutil.rmtree(images)
    return took


def ours(pid: int, place: str) -> dict[str, Any]:
    environment = os.environ | {"CKPT_STATE": f"{place}/state"}
    ckpt = str(Path(sys.executable).with_name("ckpt"))
    command = [ckpt, "--store", f"{place}/store", "dump", "--pid", str(pid), "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    report: dict[str, Any] = json.loads(output)
    return report


@contextmanager
def ballast(size_mib: int, place: str) -> Iterator[int]:
    """A python process that holds this much half-compressible memory, ready."""
    log = Path(place, "ballast.log")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "images/subjects/ballast.py"), str(size_mib), "--log", str(log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not log.exists() or not log.stat().st_size:
            if process.poll() is not None:
                sys.exit("scripts/bench: the ballast process ended")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
