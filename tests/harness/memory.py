"""Jobs that use memory as told, and the memory cgroups that they live in, version 1 or 2."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.command import Ckpt
from harness.subjects import PYTHON
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host.guard import controls

MIB = 1 << 20

# Waits for the file, then takes a MiB at a time, and says what it has; at its end the digest of all.
# On SIGUSR1 it lets go of all but the first eight.
_GROWING = """
import hashlib, os, random, signal, sys, time
target, total, pause, go = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
blocks = []
signal.signal(signal.SIGUSR1, lambda *_: blocks.__delitem__(slice(8, None)))
print("ready", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
for number in range(total):
    blocks.append(random.Random(number).randbytes(1 << 20))
    print("has", number + 1, flush=True)
    time.sleep(pause)
while target == "stays":
    time.sleep(0.02)
digest = hashlib.sha256()
for block in blocks:
    digest.update(block)
print("digest", digest.hexdigest(), flush=True)
"""


def expected_digest(total: int) -> str:
    """What a growing job must say in the end."""
    digest = hashlib.sha256()
    for number in range(total):
        digest.update(random.Random(number).randbytes(MIB))
    return digest.hexdigest()


class MemoryJob:
    """A detached job that grows to `total` MiB as soon as it is told to, and then ends, or `stays`."""

    def __init__(
        self,
        ckpt: Ckpt,
        traces: Traces,
        total: int,
        *,
        pause_s: float = 0.02,
        stays: bool = False,
        limit: str = "",
        options: tuple[str, ...] = (),
    ) -> None:
        self._ckpt = ckpt
        self.name = ckpt.new_job_name()
        self._go = traces.folder / f"{self.name}.go"
        limited = ("--memory-max", limit) if limit else ()
        words = ("stays" if stays else "ends", str(total), str(pause_s), str(self._go))
        command = (
            "run",
            "--detach",
            "--name",
            self.name,
            *options,
            *limited,
            "--",
            PYTHON,
            "-c",
            _GROWING,
            *words,
        )
        document = ckpt(*command)
        self.frozen = Path(document["cgroup"])
        self.pid = int(document["pid"])
        await_condition(lambda: "ready" in self.log(), f"{self.name} to be ready")

    @property
    def cgroup(self) -> Path:
        """Where its memory is accounted, if it was given a limit."""
        hierarchy = controls.hierarchy()
        assert hierarchy is not None
        return Path(hierarchy.mountpoint) / "ckpt" / self.name

    def go(self) -> None:
        self._go.touch()

    def log(self) -> str:
        path = self._ckpt.state / "jobs" / self.name / "log"
        return path.read_text() if path.exists() else ""

    def await_size(self, size: int) -> None:
        await_condition(lambda: f"has {size}\n" in self.log(), lambda: f"{size} MiB: {self.log()[-40:]}")

    def state(self) -> str:
        jobs = self._ckpt("ps")["jobs"]
        return str(next(job["state"] for job in jobs if job["name"] == self.name))

    def has_gone_on(self) -> bool:
        return bool(self.frozen.exists() and (self.frozen / "cgroup.procs").read_text()) and (
            "frozen 1" not in (self.frozen / "cgroup.events").read_text()
        )


class Guard:
    """`ckpt guard` at work, and what it told."""

    def __init__(self, ckpt: Ckpt, *arguments: object, **environ: str) -> None:
        self._out = ckpt.state.parent / f"guard-{time.monotonic_ns()}"
        with open(self._out, "wb") as out, open(f"{self._out}.err", "wb") as errors:
            self.process = subprocess.Popen(
                ckpt.command_line("guard", "--json", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=ckpt.environ(environ),
            )

    def events(self) -> list[dict[str, Any]]:
        found = []
        for line in self._out.read_text().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def await_event(self, event: str, **wanted: object) -> dict[str, Any]:
        def come() -> dict[str, Any] | None:
            return next(
                (
                    each
                    for each in self.events()
                    if each.get("event") == event and wanted.items() <= each.items()
                ),
                None,
            )

        def missing() -> str:
            errors = Path(f"{self._out}.err").read_text()
            return f"{event} {wanted}: {self.events()} {errors} (exit code {self.process.poll()})"

        found = await_condition(come, missing)
        assert found is not None
        return found

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def memory_cgroups(traces: Traces) -> Iterator[Path]:
    """A memory cgroup of the test's own, without a limit; it is removed, and those of the test's jobs with it."""
    hierarchy = controls.hierarchy()
    assert hierarchy is not None
    top = Path(hierarchy.mountpoint)
    own = top / traces.mark
    own.mkdir()
    try:
        yield own
    finally:
        traces.remove()
        # Those of hosts of the lab are below the cgroup that their namespace began in.
        for place in (own, *top.glob(f"**/ckpt/{traces.mark}*")):
            await_condition(lambda place=place: _removed(place), f"{place} to be removed")


def set_limit(cgroup: Path, size: int) -> None:
    """Set the limit as an operator does, and where version 2 slows down, a little below."""
    if controls.is_version_2(str(cgroup)):
        (cgroup / "memory.high").write_text("max")
    controls.set_limit(str(cgroup), size)


def _removed(place: Path) -> bool:
    for folder in sorted(place.rglob("*"), reverse=True):
        if folder.is_dir():
            with suppress(OSError):
                folder.rmdir()
    with suppress(OSError):
        place.rmdir()
    return not place.exists()
