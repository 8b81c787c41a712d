"""How long `ckpt --version` and `ckpt --help` take, beside a python that does nothing.

All are started in turns. The goal: each answers in less than 120 ms. It is judged by the fastest start, since what
other programs of the machine take away is not ckpt's; the same holds for the time of the processor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOAL_MS = 120
CKPT = str(Path(sys.executable).with_name("ckpt"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ckpt --version": [CKPT, "--version"],
    "ckpt --help": [CKPT, "--help"],
    "ckpt dump --help": [CKPT, "dump", "--help"],
}
JUDGED = ("ckpt --version", "ckpt --help")


@dataclass(frozen=True)
class Start:
    """One start: from before to the end, and the time of the processor."""

    ms: float
    cpu_ms: float


def register(commands: Any) -> None:
    parser = commands.add_parser("start", help="time until ckpt --version and --help have answered")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each (default: 25)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    for command in COMMANDS.values():  # the first start of each reads from the disk and writes byte code
        start(command)
    samples: dict[str, list[Start]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.rounds):
        for name, command in COMMANDS.items():
            samples[name].append(start(command))
    fastest = {name: min(each.ms for each in starts) for name, starts in samples.items()}
    python = fastest["python -c pass"]
    print(f"{arguments.rounds} rounds, all in turns\n")
    print("| command | fastest ms | times python -c pass | median ms | median ms of processor |")
    print("|---|---|---|---|---|")
    for name, starts in samples.items():
        median = statistics.median(each.ms for each in starts)
        cpu = statistics.median(each.cpu_ms for each in starts)
        print(f"| {name} | {fastest[name]:.1f} | {fastest[name] / python:.2f} | {median:.1f} | {cpu:.1f} |")
    met = all(fastest[name] < GOAL_MS for name in JUDGED)
    print(f"\ngoal: {' and '.join(JUDGED)} in less than {GOAL_MS} ms: {'met' if met else 'MISSED'}")
    return 0 if met else 1


def start(command: list[str]) -> Start:
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"scripts/bench start: {command} ended with {process.returncode}")
    return Start(ms=took * 1000, cpu_ms=(usage.ru_utime + usage.ru_stime) * 1000)
