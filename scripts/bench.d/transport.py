"""How fast pages go from one host of a lab to another: ckpt beside SSH and through it, and the system's ssh.

All encrypt with AES-GCM; ssh reads a file and writes to /dev/null, ckpt sends the same bytes as messages, and compresses
where it measures that this pays: --mbit makes the cable slow enough for that. Connecting is not counted.

The goal: through SSH at least as fast as ssh.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rounds import claim_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from harness.traces import Traces
from real.transporting import TransportBed

MIB = 1 << 20


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "transport",
        help="what the connections of a migration take a second, against ssh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: scripts/bench transport --rounds 5",
    )
    parser.add_argument("--size", type=int, default=1024, help="what is sent, in MiB (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--mbit", type=int, default=0, help="what the cable takes (default: all it can)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench transport: this needs root.", file=sys.stderr)
        return 10
    beside: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    beside_bytes = sent_bytes = 0
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="ckpt-bench-") as directory:
        traces = Traces(Path(directory))
        try:
            bed = TransportBed(traces, digests=False)
            claim_memory(arguments.size * MIB)
            bed.fill(arguments.size * MIB)
            if arguments.mbit:
                bed.limit(arguments.mbit)
            for _ in range(arguments.rounds):
                sent = bed.send(direct=True)
                beside_bytes = sent.sent_bytes
                beside.append(sent.received_bytes / 1e6 / sent.seconds)
                sent = bed.send()
                sent_bytes = sent.sent_bytes
                ours.append(sent.received_bytes / 1e6 / sent.seconds)
                theirs.append(sent.received_bytes / 1e6 / bed.send_by_ssh())
        except KeyboardInterrupt:
            print("scripts/bench transport: interrupted; everything it made is removed.", file=sys.stderr)
            return 130
        finally:
            traces.remove()
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{arguments.size} MiB, half of each page noise; medians of {arguments.rounds} rounds, in turns\n")
    print("| way | MB/s | all rounds | MiB sent |\n|---|---|---|---|")
    for way, rates, sent_mib in (
        ("ckpt, a direct connection", beside, f"{beside_bytes / MIB:.0f}"),
        ("ckpt, through SSH", ours, f"{sent_bytes / MIB:.0f}"),
        ("ssh -c aes128-gcm", theirs, ""),
    ):
        print(
            f"| {way} | {statistics.median(rates):.0f} | {', '.join(f'{r:.0f}' for r in rates)} | {sent_mib} |"
        )
    print(f"\nthrough SSH ckpt is {ratio:.2f} × as fast; the goal is 1: {'met' if ratio >= 1 else 'missed'}")
    return 0 if ratio >= 1 else 1
