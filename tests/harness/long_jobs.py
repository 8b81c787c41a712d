"""Real long jobs: a pytest suite, a parallel build, a numerical computation; and what each must have made at its end.

Rules:
- Each begins by clearing its place, as what is killed before its first checkpoint begins anew.
- Each stands before its last part until there is a gate: so it is certain that it does not end before it may.
- All that it writes, temporary files too, is in its place, and the gate and what it works on are not.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

FOLDER = Path(__file__).parents[2] / "images/subjects"
PYTHON = sys.executable
Results = dict[str, object]


class LongJob(ABC):
    """One job, with a place of its own."""

    name: ClassVar[str]

    def __init__(self, above: Path) -> None:
        self.sources = above / f"{self.name}-sources"
        self.place = above / self.name
        self.gate = above / f"gate-of-{self.name}"
        self.sources.mkdir()
        self.place.mkdir()
        self.write_sources()

    @abstractmethod
    def write_sources(self) -> None:
        """Write what it works on."""

    @abstractmethod
    def script(self) -> str:
        """What a shell does in its place ($0), with its sources ($1) and its gate ($2)."""

    @abstractmethod
    def results(self, log: str) -> Results:
        """What it has made, by name: all that must be the same whenever it runs."""

    def command(self) -> list[str]:
        """How it is started."""
        script = (
            # A compiler leaves files in TMPDIR that its assembler opens later.
            'set -e; cd "$0"; rm -rf ./*; mkdir tmp; export TMPDIR="$0/tmp" GATE="$2" OPENBLAS_NUM_THREADS=2; '
            f"{self.script()}"
        )
        return ["/bin/sh", "-c", script, str(self.place), str(self.sources), str(self.gate)]

    def undisturbed(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Run it without ckpt; its output is the process's."""
        return subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )


class Suite(LongJob):
    """61 tests, which have fixtures, make files, run programs, use a database and threads, and wait a little."""

    name = "suite"
    parts = 6
    gate_after = 4

    def write_sources(self) -> None:
        subjects = FOLDER / "suite"
        (self.sources / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
        shutil.copy(subjects / "conftest.py", self.sources)
        for number in range(self.parts):
            shutil.copy(subjects / "part.py", self.sources / f"test_part_{number}.py")
        shutil.copy(subjects / "gate.py", self.sources / f"test_part_{self.gate_after}_gate.py")

    def script(self) -> str:
        return (
            "exec env PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS= PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "
            f'{PYTHON} -m pytest -v --color=no --rootdir="$1" --basetemp=tests --junit-xml=junit.xml "$1"'
        )

    def results(self, log: str) -> Results:
        junit = (self.place / "junit.xml").read_text()
        return {
            "log": re.sub(r"=* (\d+ passed) in .*", r"\1", log),
            "junit": re.sub(r' (time|timestamp)="[^"]*"', "", junit),
            "database": (self.place / "rows").read_text(),
        }


class Build(LongJob):
    """60 C files, a static library of them, a program, and tests that make runs."""

    name = "build"
    units = 60
    late_units = 12
    functions = 8

    def write_sources(self) -> None:
        (self.sources / "units.h").write_text(
            "".join(f"long unit_{unit:02}(long x);\n" for unit in range(self.units))
        )
        for unit in range(self.units):
            (self.sources / f"unit_{unit:02}.c").write_text(self._unit(unit))
        calls = "".join(f"    sum = sum * 31 + unit_{unit:02}(sum & 255);\n" for unit in range(self.units))
        (self.sources / "main.c").write_text(_MAIN.format(calls=calls))

    def _unit(self, unit: int) -> str:
        numbers = range(self.functions)
        functions = "".join(_FUNCTION.format(number=each, seed=unit * 97 + each) for each in numbers)
        total = " + ".join(f"f_{each}(x)" for each in numbers)
        return f'#include "units.h"\n{functions}\nlong unit_{unit:02}(long x) {{ return {total}; }}\n'

    def script(self) -> str:
        late = self.units - self.late_units
        makefile = FOLDER / "units/Makefile"
        return f'exec make -j2 -f {makefile} SOURCES="$1" UNITS={self.units} LATE={late} all check'

    def results(self, log: str) -> Results:
        made = sorted(path for path in self.place.rglob("*") if path.is_file())
        program = subprocess.run([self.place / "program", "3"], check=True, capture_output=True, text=True)
        return {
            # What runs side by side may come in another order.
            "log": sorted(log.splitlines()),
            "files": [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in made],
            "program": program.stdout,
        }


class Power(LongJob):
    """numpy, with two threads of BLAS."""

    name = "power"
    steps = 28
    gate_step = 20

    def write_sources(self) -> None:
        """It has none."""

    def script(self) -> str:
        return f'exec {PYTHON} {FOLDER / "power.py"} "$0" {self.steps} "$2" {self.gate_step}'

    def results(self, log: str) -> Results:
        names = ("trace", "state.npy", "spectrum.npy")
        return {"log": log, **{name: (self.place / name).read_bytes() for name in names}}


_FUNCTION = """
static long f_{number}(long x) {{
    long a[64], sum = {seed};
    for (int i = 0; i < 64; i++)
        a[i] = (x + i) * {seed} % 1009;
    for (int i = 1; i < 64; i++)
        for (int j = i; j && a[j - 1] > a[j]; j--) {{
            long former = a[j];
            a[j] = a[j - 1];
            a[j - 1] = former;
        }}
    for (int i = 0; i < 64; i++)
        sum = sum * 7 % 100003 + a[i] * i;
    return sum;
}}
"""

_MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "units.h"

int main(int count, char **words) {{
    unsigned long sum = count > 1 ? atol(words[1]) : 0;
{calls}
    printf("%lu\\n", sum);
}}
"""
