"""How ckpt's store does beside `tar | zstd -1 -T2`, restic and borg, on real dumps that all of them are given.

Two dumps of one process, 1 % of it changed between them: each tool stores the first, then the second, and gives
the second back, which is compared. All find the dumps in the page cache, and all are durable within the time
measured (syncfs). What is printed are ratios of the same round, then the goals: they are reported, not asserted.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pstats
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chain
import contenders
import dumps
import rounds
import verdicts
import workloads
from chain import Chain
from dumps import Changes
from rounds import ACTS, FETCH, FIRST, SECOND, Figures, Pair
from verdicts import MIB, Goal
from workloads import Workload

BIG_MIB = 8192
BIG_ROUNDS = 1
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KINDS = ("ballast", "redis")
PROFILE_LINES = 25
# Two dumps, a store with both as whole tar files, and one dump given back; and something for the others.
SPACE_FACTOR = 5.5


@dataclass(frozen=True)
class Case:
    """A process to be dumped, and how often its dumps are given to each tool."""

    kind: str
    size_mib: int
    rounds: int


@dataclass
class Result:
    """What was measured with the dumps of one process."""

    name: str
    size_mib: int
    rounds: int
    changes: Changes
    figures: dict[str, Figures] = field(default_factory=dict)
    chain: Chain | None = None
    profiles: dict[str, str] = field(default_factory=dict)


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "store",
        help="the image store against tar+zstd, restic and borg, on real dumps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: scripts/bench store --sizes 256 --rounds 1 --workloads ballast --tools ckpt,tar+zstd",
    )
    parser.add_argument("--sizes", default="1024", help="sizes of ballast in MiB (default: 1024)")
    parser.add_argument("--big", action="store_true", help="ballast of 8 GiB as well, one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each pair of dumps (default: 3)")
    parser.add_argument(
        "--chain", type=int, default=20, help="checkpoints of the chain; 0 for none (default: 20)"
    )
    parser.add_argument("--workloads", default=",".join(KINDS), help="default: ballast,redis")
    parser.add_argument("--tools", default="", help="of ckpt,tar+zstd,restic,borg (default: all)")
    parser.add_argument("--directory", default="/var/tmp", help="where everything goes (default: /var/tmp)")
    parser.add_argument("--profile", action="store_true", help="run ckpt once more under cProfile")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("scripts/bench store: this needs root.", file=sys.stderr)
        return 10
    for number in ENDING_SIGNALS:
        signal.signal(number, interrupted)
    problems: list[str] = []
    tools = installed(arguments, problems)
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="ckpt-bench-") as place:
            for case in plan(arguments):
                with problem_of(case.kind, problems), below(Path(place), case.kind) as own:
                    results.append(measure(case, arguments, tools, own, problems))
    except KeyboardInterrupt:
        print("scripts/bench store: interrupted; everything it made is removed.", file=sys.stderr)
        return 130
    goals = list(judge(results))
    if arguments.json:
        print(json.dumps(document(results, goals, problems), indent=2))
    else:
        print(text(results, goals), end="")
    for problem in problems:
        print(f"scripts/bench store: {problem}", file=sys.stderr)
    return 1 if problems else 0


def interrupted(*_: object) -> None:
    """Go the way of Ctrl-C, whichever signal it was; a second one does not disturb the tidying."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def installed(arguments: argparse.Namespace, problems: list[str]) -> tuple[contenders.Contender, ...]:
    """The tools that were asked for and are there; says how to get the others."""
    asked = set(filter(None, arguments.tools.split(",")))
    found = []
    for tool in contenders.every():
        if asked and tool.name not in asked:
            continue
        lacking = contenders.missing(tool)
        if lacking:
            problems.append(f"{tool.name} is not measured: apt-get install {' '.join(lacking.values())}")
        else:
            found.append(tool)
    return tuple(found)


def plan(arguments: argparse.Namespace) -> Iterator[Case]:
    kinds = arguments.workloads.split(",")
    if "ballast" in kinds:
        sizes = [int(size) for size in arguments.sizes.split(",")]
        if arguments.big and BIG_MIB not in sizes:
            sizes.append(BIG_MIB)
        for size in sizes:
            yield Case("ballast", size, arguments.rounds if size < BIG_MIB else BIG_ROUNDS)
    if "redis" in kinds:
        yield Case("redis", workloads.REDIS_RSS_MIB, arguments.rounds)


def measure(
    case: Case,
    arguments: argparse.Namespace,
    tools: tuple[contenders.Contender, ...],
    place: Path,
    problems: list[str],
) -> Result:
    """Everything about one process; what failed for one tool is added to the problems."""
    require_space(place, case.size_mib)
    say = speaker(f"{case.kind} {case.size_mib} MiB")
    say("the process fills its memory")
    found: Chain | None = None
    with started(case, place) as workload:
        say("two dumps of it")
        pair = Pair(place=place, first=place / "dump-0", second=place / "dump-1")
        dumps.dump(workload.pid, pair.first)
        workload.change()
        dumps.dump(workload.pid, pair.second)
        ours = any(tool.name == "ckpt" for tool in tools)
        if case.kind == "redis" and ours and arguments.chain:
            with problem_of("the chain", problems):
                ready = (pair.first, pair.second)[: arguments.chain]
                found = chain.make(workload, place, ready, arguments.chain, say)
    result = Result(
        name=case.kind,
        size_mib=case.size_mib,
        rounds=case.rounds,
        changes=dumps.changes(pair.first, pair.second),
        chain=found,
    )
    result.figures, failed = rounds.measure(tools, pair, case.rounds, say)
    problems += failed
    if arguments.profile and "ckpt" in result.figures:
        result.profiles = {act: hottest(path) for act, path in rounds.profiles(pair).items()}
    return result


@contextmanager
def started(case: Case, place: Path) -> Iterator[Workload]:
    if case.kind == "ballast":
        with workloads.ballast(case.size_mib, place) as ballast:
            yield ballast
        return
    if shutil.which("redis-server") is None:
        raise contenders.ToolError("apt-get install redis-server")
    with workloads.redis(place) as redis:
        yield redis


@contextmanager
def below(above: Path, name: str) -> Iterator[Path]:
    """A directory of its own, removed as soon as it is not needed: dumps are large."""
    with tempfile.TemporaryDirectory(dir=above, prefix=f"{name}-") as place:
        yield Path(place)


@contextmanager
def problem_of(name: str, problems: list[str]) -> Iterator[None]:
    """What fails here is a problem among others; the rest goes on."""
    try:
        yield
    except (contenders.ToolError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        problems.append(f"{name} is not measured: {error}")


def require_space(place: Path, size_mib: int) -> None:
    free = shutil.disk_usage(place).free
    needed = int(size_mib * MIB * SPACE_FACTOR)
    if free < needed:
        raise RuntimeError(
            f"{needed >> 30} GiB of disk are needed, and {free >> 30} GiB are free; see --directory"
        )


def speaker(subject: str) -> Any:
    return lambda words: print(f"scripts/bench store: {subject}: {words}", file=sys.stderr, flush=True)


def hottest(profile: Path) -> str:
    """The functions that took most time of their own, all threads together."""
    output = io.StringIO()
    pstats.Stats(str(profile), stream=output).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
    # Its first line names a file that is gone when this is read.
    return output.getvalue().strip().partition("\n")[2].strip()


def judge(results: list[Result]) -> Iterator[Goal]:
    """The goals that these results say something about."""
    ballasts = [result for result in results if result.name == "ballast"]
    for result in ballasts:
        yield from verdicts.of_ballast(title(result), result.figures)
    for result in results:
        yield from verdicts.against_peers(title(result), result.figures)
    for result in results:
        if result.name == "redis":
            yield from verdicts.of_redis(result.figures)
            if result.chain is not None:
                yield verdicts.of_chain(result.chain)
    sized = [(result.size_mib, result.figures["ckpt"]) for result in ballasts if "ckpt" in result.figures]
    if len(sized) > 1:
        yield from verdicts.of_growth(min(sized, key=size_of), max(sized, key=size_of))


def size_of(sized: tuple[int, Figures]) -> int:
    return sized[0]


def title(result: Result) -> str:
    return f"{result.name} {result.size_mib} MiB"


def text(results: list[Result], goals: list[Goal]) -> str:
    lines: list[str] = []
    for result in results:
        lines += tables(result)
        for act, profile in result.profiles.items():
            lines += [
                f"### ckpt, {act}: all threads under cProfile, waiting included",
                "",
                "```",
                profile,
                "```",
                "",
            ]
    if goals:
        lines += ["## Goals", "", "| goal | measured | |", "|---|---|---|"]
        lines += [f"| {goal.text} | {goal.found} | {'met' if goal.met else 'NOT met'} |" for goal in goals]
    return "\n".join(lines) + "\n"


def tables(result: Result) -> Iterator[str]:
    changes = result.changes
    yield f"## {title(result)}"
    yield ""
    yield (
        f"Between the dumps {changes.pages} of {changes.of_pages} pages changed"
        f" ({100 * changes.pages / max(1, changes.of_pages):.2f} %): {changes.plain_bytes / MIB:.1f} MiB,"
        f" {changes.compressed_bytes / MIB:.1f} MiB after zstd -1 in blocks of 1 MiB,"
        f" {changes.delta_bytes / MIB:.1f} MiB where XORed with the former page."
        f" Medians of {result.rounds} rounds, tools in turns; × is the ratio to tar+zstd of the same round."
    )
    yield ""
    yield (
        "| tool | first, s | × | stored, MiB | second, s | × | added, MiB | fetch, s | × "
        "| peak ingest, MiB | peak fetch, MiB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    tar = result.figures.get("tar+zstd")
    for name, figures in result.figures.items():
        ratios = {act: f"{figures.ratio(tar, act):.2f}" if tar else "–" for act in ACTS}
        peak = max(figures.peak_mib(FIRST), figures.peak_mib(SECOND))
        yield (
            f"| {name} | {figures.seconds(FIRST):.2f} | {ratios[FIRST]} | {figures.stored_bytes / MIB:.1f} "
            f"| {figures.seconds(SECOND):.2f} | {ratios[SECOND]} | {figures.added_bytes / MIB:.2f} "
            f"| {figures.seconds(FETCH):.2f} | {ratios[FETCH]} | {peak:.0f} | {figures.peak_mib(FETCH):.0f} |"
        )
    yield ""
    yield from starts(result)
    if result.chain is not None:
        yield from chain_table(result.chain)


def starts(result: Result) -> Iterator[str]:
    """What each tool takes before it does anything, and whether that is in the figures."""
    parts = []
    for name, figures in result.figures.items():
        if figures.starts_s:
            counted = "not counted: python and imports" if name == "ckpt" else "counted"
            parts.append(f"{name} {sorted(figures.starts_s)[len(figures.starts_s) // 2]:.2f} s ({counted})")
    if parts:
        yield f"The start alone takes: {', '.join(parts)}."
        yield ""


def chain_table(found: Chain) -> Iterator[str]:
    yield f"### A chain of {len(found.links)} checkpoints, 1 % of the keys set anew before each"
    yield ""
    yield "| # | pages changed | plain, MiB | compressed, MiB | as deltas, MiB | stored, MiB | ingest, s |"
    yield "|---|---|---|---|---|---|---|"
    for number, link in enumerate(found.links, 1):
        changes = link.changes
        cells = "– | – | – | –"
        if changes is not None:
            cells = (
                f"{changes.pages} | {changes.plain_bytes / MIB:.1f} "
                f"| {changes.compressed_bytes / MIB:.2f} | {changes.delta_bytes / MIB:.2f}"
            )
        yield f"| {number} | {cells} | {link.stored_bytes / MIB:.2f} | {link.ingest.seconds:.2f} |"
    yield ""
    yield (
        f"Stored {found.stored_bytes / MIB:.1f} MiB; the first and {chain.LIMIT} × (changed pages, compressed) are "
        f"{found.allowed_bytes / MIB:.1f} MiB. Fetching the oldest took {found.fetch_first.seconds:.2f} s, "
        f"the newest {found.fetch_last.seconds:.2f} s."
    )
    yield ""


def document(results: list[Result], goals: list[Goal], problems: list[str]) -> dict[str, Any]:
    return {
        "results": [
            {
                "workload": result.name,
                "size_mib": result.size_mib,
                "rounds": result.rounds,
                "changes": dataclasses.asdict(result.changes) | {"plain_bytes": result.changes.plain_bytes},
                "tools": {name: tool_document(figures, result) for name, figures in result.figures.items()},
                "chain": result.chain and dataclasses.asdict(result.chain),
                "profiles": result.profiles,
            }
            for result in results
        ],
        "goals": [dataclasses.asdict(goal) for goal in goals],
        "problems": problems,
    }


def tool_document(figures: Figures, result: Result) -> dict[str, Any]:
    tar = result.figures.get("tar+zstd")
    return {
        "stored_bytes": figures.stored_bytes,
        "added_bytes": figures.added_bytes,
        "starts_s": figures.starts_s,
        **{
            act: {
                "seconds": figures.seconds(act),
                "cpu_seconds": figures.cpu_seconds(act),
                "peak_mib": figures.peak_mib(act),
                "ratio_to_tar": figures.ratio(tar, act) if tar else None,
                "samples": [dataclasses.asdict(sample) for sample in figures.samples[act]],
            }
            for act in ACTS
        },
    }
