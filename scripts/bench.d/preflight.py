"""What `ckpt check` says of little workloads, and what then really happens to them: the confusion matrix.

Every workload is checked, then dumped with --force and killed, restored, and asked whether it has all that it had.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preflight_matrix import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ROOT / "images" / "subjects"
CKPT = Path(sys.executable).with_name("ckpt")
READY_S, COMMAND_S = 10.0, 90.0
FALSE_ALARMS_MAX = 2
COST_TASKS, COST_FDS, COST_ROUNDS, COST_MS_MAX = 20, 25, 9, 50.0
SAYS = ("fine", "warning", "blocker")
HAPPENS = ("fine", "something lost", "fails")

sys.path.insert(0, str(SUBJECTS))
from orders import ask, put  # noqa: E402 - the programs' own side of the conversation


@dataclass(frozen=True)
class Outcome:
    """What was said of a workload and what happened to it."""

    case: str
    says: str
    rules: tuple[str, ...]
    happens: str
    detail: str

    @property
    def verdict(self) -> str:
        """ "" where what was said is right."""
        if self.happens == "fails" and self.says != "blocker":
            return "false fine"
        if self.happens == "something lost" and self.says == "fine":
            return "false fine"
        if self.says == "blocker" and self.happens != "fails":
            return "false alarm"
        return ""


def register(commands: Any) -> None:
    """Add the benchmark to the command line."""
    parser = commands.add_parser("preflight", help="what 'ckpt check' says, and what really happens")
    parser.add_argument("--only", metavar="TEXT", help="only the workloads whose names have this")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Go through all workloads and print the matrix."""
    if os.geteuid() != 0:
        print("scripts/bench preflight needs root", file=sys.stderr)
        return 10
    cases = [case for case in CASES if not arguments.only or arguments.only in case.name]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="ckpt-preflight-") as top, a_cgroup() as cgroup:
        Path(top).chmod(0o755)
        for number, case in enumerate(cases):
            outcome = go_through(case, Path(top) / str(number), cgroup / str(number))
            if outcome is None:
                print(f"{case.name:<38} not here: this kernel has no such thing", flush=True)
                continue
            outcomes.append(outcome)
            print(
                f"{outcome.case:<38} {outcome.says:<8} {outcome.happens:<15} {outcome.verdict:<12}"
                f"{', '.join(outcome.rules)}{f'  [{outcome.detail}]' if outcome.detail else ''}".rstrip(),
                flush=True,
            )
        took_ms = cost_ms(Path(top) / "cost", cgroup / "cost")
    print_matrix(outcomes)
    print(
        f"{'met' if took_ms <= COST_MS_MAX else 'MISSED'}: all rules took {took_ms:.1f} ms for {COST_TASKS} tasks with "
        f"{COST_TASKS * COST_FDS} descriptors, at most {COST_MS_MAX:.0f} ms"
    )
    return 0


def print_matrix(outcomes: list[Outcome]) -> None:
    """What was said against what happened, and the goals."""
    counted = Counter((outcome.says, outcome.happens) for outcome in outcomes)
    print(
        f"\n{len(outcomes)} workloads\n{'ckpt check says':<18}" + "".join(f"{name:>16}" for name in HAPPENS)
    )
    for says in SAYS:
        print(f"{says:<18}" + "".join(f"{counted[says, happens]:>16}" for happens in HAPPENS))
    for verdict, limit in (("false fine", 0), ("false alarm", FALSE_ALARMS_MAX)):
        found = [outcome.case for outcome in outcomes if outcome.verdict == verdict]
        state = "met" if len(found) <= limit else "MISSED"
        print(
            f"{state}: {len(found)} {verdict}(s), at most {limit}{': ' + '; '.join(found) if found else ''}"
        )


def cost_ms(folder: Path, cgroup: Path) -> float:
    """What a check costs, without the start of Python: the median of some."""
    from ckpt.host.inspection.inspector import HostInspector
    from ckpt.model.checkpoint import DumpOptions
    from ckpt.model.target import Target, TargetRef
    from ckpt.model.workload import TargetKind
    from ckpt.units import Pid

    holds = f"held['f'] = [open(folder + '/f', 'a') for _ in range({COST_FDS - 8})]; held['s'] = socket.socketpair()"
    setup = f"{holds}\nfor _ in range({COST_TASKS - 1}):\n    if not os.fork(): signal.pause()"
    folder.mkdir()
    cgroup.mkdir()
    environment = {"CKPT_STATE": f"{folder}-state", "CKPT_STORE": f"{folder}-store"}
    with ExitStack() as stack:
        stack.callback(end, cgroup, os.environ | environment)
        if not start(Case("cost", setup), folder, cgroup, subprocess.DEVNULL):
            raise SystemExit("the workload did not come up")
        ref = TargetRef(kind=TargetKind.CGROUP, name=str(cgroup))
        roots = tuple(Pid(pid) for pid in _pids(cgroup)[:1])
        inspector = HostInspector(environment["CKPT_STATE"])
        took: list[int] = []
        for _ in range(COST_ROUNDS):
            began = time.monotonic_ns()
            inspector.check(Target(ref=ref, cgroup=str(cgroup), roots=roots, job=None), DumpOptions())
            took.append(time.monotonic_ns() - began)
    return sorted(took)[COST_ROUNDS // 2] / 1e6


def go_through(case: Case, folder: Path, cgroup: Path) -> Outcome | None:
    """Start it, check it, dump and restore it; None if this kernel cannot run it."""
    folder.mkdir()
    folder.chmod(0o777)  # some are of other users
    cgroup.mkdir()
    environment = os.environ | {"CKPT_STATE": f"{folder}-state", "CKPT_STORE": f"{folder}-store"}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(end, cgroup, environment)
        stack.enter_context(case.outside(folder))
        stdin = stack.enter_context(case.stdin() if case.stdin else nullcontext(subprocess.DEVNULL))
        if not start(case, folder, cgroup, stdin):
            return None
        checked = ckpt(environment, "check", "--cgroup", cgroup, *case.options)
        findings = checked.get("findings", [])
        grave = {finding["severity"] for finding in findings}
        says = "blocker" if "blocker" in grave else "warning" if "warning" in grave else "fine"
        rules = tuple(dict.fromkeys(finding["rule"] for finding in findings if finding["severity"] != "info"))
        if "error" in checked:
            says, rules = "blocker", (checked["error"]["slug"],)
        happens, detail = dump_and_restore(case, folder, cgroup, environment)
    return Outcome(case.name, says, rules, happens, detail)


def dump_and_restore(case: Case, folder: Path, cgroup: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What really happens to it."""
    dumped = ckpt(
        environment, "dump", "--cgroup", cgroup, "--stop", "--force", "--name", "case", *case.options
    )
    if "error" in dumped:
        return "fails", f"dump: {brief(dumped)}{'' if lives(cgroup) else '; IT IS GONE'}"
    restored = ckpt(environment, "restore", dumped["id"])
    if "error" in restored:
        return "fails", f"restore: {brief(restored)}"
    answer = probe(folder)
    if "error" in answer:
        return "fails", f"afterwards: {answer['error']}"
    return ("something lost", str(answer["lost"])) if answer["lost"] else ("fine", "")


def start(case: Case, folder: Path, cgroup: Path, stdin: int) -> bool:
    """Whether it came up."""
    (folder / "setup").write_text(case.setup)
    (folder / "probe").write_text(case.probe)
    program = [
        sys.executable,
        str(SUBJECTS / "snippets.py"),
        str(folder),
        str(folder / "setup"),
        str(folder / "probe"),
    ]
    command = [
        "/bin/sh",
        "-c",
        'echo $$ >"$0/cgroup.procs" && exec "$@"',
        str(cgroup),
        *case.command,
        *program,
    ]
    with (folder / "output").open("w") as output:
        # Not a child of ours: nobody waits for what a dump kills.
        subprocess.run(
            ["setsid", "--fork", *(["--ctty"] if os.isatty(stdin) else []), *command],
            stdin=stdin, stdout=output, stderr=output, cwd=folder, check=True,
        )  # fmt: skip
    end_at = time.monotonic() + READY_S
    while time.monotonic() < end_at:
        if (folder / "answer").exists():
            return True
        time.sleep(0.01)
    print((folder / "output").read_text()[-300:], file=sys.stderr)
    return False


def probe(folder: Path) -> dict[str, Any]:
    """Ask it what it lost."""
    for name in ("request", "answer"):
        (folder / name).unlink(missing_ok=True)
    put(f"{folder}/answer", {"id": "none yet"})
    return ask(str(folder), "probe")


def ckpt(environment: dict[str, str], *words: object) -> dict[str, Any]:
    """One call of ckpt, and its document."""
    done = subprocess.run(
        [str(CKPT), *map(str, words), "--json"],
        env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    document: dict[str, Any] = json.loads(
        done.stdout or '{"error": {"message": "nothing", "slug": "silent"}}'
    )
    return document


def brief(document: dict[str, Any]) -> str:
    """An error's words."""
    return str(document["error"]["message"])[:160]


def lives(cgroup: Path) -> bool:
    """Whether somebody is left in it, and not frozen."""
    return (
        bool((cgroup / "cgroup.procs").read_text().split())
        and "frozen 0" in (cgroup / "cgroup.events").read_text()
    )


def end(cgroup: Path, environment: dict[str, str]) -> None:
    """Kill what is left of it, here and as a job, and forget both."""
    with suppress(OSError):
        (cgroup / "cgroup.kill").write_text("1")
    subprocess.run([str(CKPT), "stop", "case"], env=environment, capture_output=True, check=False)
    for pid in _pids(cgroup):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    end_at = time.monotonic() + 5
    while _pids(cgroup) and time.monotonic() < end_at:
        time.sleep(0.01)
    for place in ("CKPT_STATE", "CKPT_STORE"):
        shutil.rmtree(environment[place], ignore_errors=True)
    with suppress(OSError):
        cgroup.rmdir()


def _pids(cgroup: Path) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in (cgroup / "cgroup.procs").read_text().split()]
    return []


@contextmanager
def a_cgroup() -> Iterator[Path]:
    """A cgroup of version 2 for all of it."""
    from ckpt.host import cgroups

    hierarchy = cgroups.unified()
    if hierarchy is None:
        raise SystemExit("scripts/bench preflight needs cgroup version 2")
    place = Path(hierarchy.mountpoint) / f"ckpt-bench-preflight-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        with suppress(OSError):
            place.rmdir()
