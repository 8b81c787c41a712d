"""How long a program stands still when it moves to another host, beside what people do with a bare CRIU and ssh.

A program with 1 GiB of memory, of which a share is changed every second at random places, moves from one host of a
lab to another. Peers, in turns with ckpt in every round: CRIU's dump on a tmpfs, tar through ssh (aes128-gcm) and
restore; CRIU's page server through ssh -L; and, as the measure, a bare dump and restore on one host. The downtime is
what the program itself saw: it writes down the time every millisecond.

The goals: a downtime of at most 1.3 times that of the dump and restore on one host; under the freeze at most 1.2 times
the bytes of the pages that had changed; a total time below that of tar through ssh.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
from collections.abc import Callable
from typing import Any

import migrate_ways
from migrate_subject import two_hosts
from migrate_ways import WAYS, Trip, Way, WayError
from rounds import claim_memory

DOWNTIME_GOAL, FROZEN_GOAL, TOTAL_GOAL = 1.3, 1.2, 1.0
# What a round holds in memory at once: the program on both hosts, its images on both, and what ckpt has sent.
COPIES = 5
MIB = 1 << 20
COLUMNS = (
    "way",
    "downtime ms",
    "× one host",
    "pause before ms",
    "total ms",
    "× tar",
    "MiB sent",
    "rounds",
    "MiB under freeze",
    "pages changed",
    "× changed",
    "pages written meanwhile",
)

Trips = dict[Way, list[Trip]]


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "migrate",
        help="downtime, time and bytes of a migration against bare criu and ssh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: scripts/bench migrate --rounds 3",
    )
    parser.add_argument("--size", type=int, default=1024, help="memory of the program in MiB (default: 1024)")
    parser.add_argument("--rates", default="1,10", help="percent changed a second (default: 1,10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each rate (default: 3)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the ways whose names have this")
    parser.add_argument("--disk", action="store_true", help="images on the disk, not on a tmpfs")
    parser.add_argument("--directory", default="/var/tmp", help="where the hosts lie (default: /var/tmp)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench migrate: this needs root.", file=sys.stderr)
        return 10
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ways = [way for way in WAYS if arguments.only in way.name]
    problems: list[str] = []
    place = "the disk" if arguments.disk else "a tmpfs"
    print(f"{arguments.size} MiB; images on {place}; medians of {arguments.rounds} rounds, in turns\n")
    try:
        results = {
            rate: measure(arguments, ways, float(rate), problems) for rate in arguments.rates.split(",")
        }
    except KeyboardInterrupt:
        print("scripts/bench migrate: interrupted; everything it made is removed.", file=sys.stderr)
        return 130
    for rate, trips in results.items():
        print(table(rate, trips))
    for problem in problems:
        print(f"scripts/bench migrate: not measured: {problem}", file=sys.stderr)
    met = [judge(rate, trips) for rate, trips in results.items()]
    return 0 if all(met) and not problems else 1


def measure(arguments: argparse.Namespace, ways: list[Way], percent: float, problems: list[str]) -> Trips:
    """The trips of every way that leads there; why the others do not goes to `problems`."""
    trips: Trips = {way: [] for way in ways}
    with two_hosts(arguments.directory, disk=arguments.disk) as hosts:
        for number in range(arguments.rounds):
            turn = number % len(ways)
            for way in [way for way in ways[turn:] + ways[:turn] if way in trips]:
                progress(f"{percent:g} %/s, round {number + 1} of {arguments.rounds}: {way.name}")
                claim_memory(COPIES * arguments.size * MIB)
                try:
                    trips[way].append(way.go(hosts, arguments.size, percent))
                except (WayError, AssertionError) as error:
                    problems.append(f"{way.name}, {percent:g} %/s: {error}")
                    del trips[way]
    return trips


def table(rate: str, trips: Trips) -> str:
    lines = [
        f"{rate} % of the pages changed a second\n",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for way, own in trips.items():
        cells = [
            f"{median(own, lambda trip: trip.pauses.down_ms):.0f}",
            shown(ratio(trips, way, migrate_ways.OneHost, lambda trip: trip.pauses.down_ms)),
            f"{median(own, lambda trip: trip.pauses.earlier_ms):.0f}",
            f"{median(own, lambda trip: trip.total_ms):.0f}",
            shown(ratio(trips, way, migrate_ways.TarOverSsh, lambda trip: trip.total_ms)),
            f"{median(own, lambda trip: trip.wire_bytes / MIB):.0f}",
        ]
        if isinstance(way, migrate_ways.Ours):
            cells += [
                f"{median(own, lambda trip: trip.rounds):.0f}",
                f"{median(own, lambda trip: trip.frozen_bytes / MIB):.1f}",
                f"{median(own, lambda trip: trip.changed_pages):.0f}",
                f"{median(own, lambda trip: trip.frozen_ratio):.2f}",
                f"{median(own, lambda trip: trip.written_pages):.0f}",
            ]
        else:
            cells += [""] * 5
        lines.append(f"| {way.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def judge(rate: str, trips: Trips) -> bool:
    """Print what became of the goals; whether all that could be judged are met."""
    ours = next((way for way in trips if isinstance(way, migrate_ways.Ours)), None)
    if ours is None:
        return True
    goals = [
        (
            "downtime / one host",
            ratio(trips, ours, migrate_ways.OneHost, lambda trip: trip.pauses.down_ms),
            DOWNTIME_GOAL,
        ),
        (
            "bytes under the freeze / pages changed",
            median(trips[ours], lambda t: t.frozen_ratio),
            FROZEN_GOAL,
        ),
        ("total / tar", ratio(trips, ours, migrate_ways.TarOverSsh, lambda trip: trip.total_ms), TOTAL_GOAL),
    ]
    for what, value, goal in goals:
        if value is not None:
            verdict = "met" if value <= goal else "MISSED"
            print(f"goal at {rate} %/s: {what} <= {goal:g}: {value:.2f}, {verdict}")
    return all(value is None or value <= goal for _, value, goal in goals)


def ratio(trips: Trips, way: Way, other: type[Way], of: Callable[[Trip], float]) -> float | None:
    """The median of the rounds' ratios to another way: what disturbs one round disturbs both of it."""
    its = next((found for each, found in trips.items() if isinstance(each, other)), None)
    if its is None:
        return None
    return statistics.median(of(mine) / of(theirs) for mine, theirs in zip(trips[way], its, strict=True))


def median(trips: list[Trip], of: Callable[[Trip], float]) -> float:
    return statistics.median(map(of, trips))


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def progress(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
