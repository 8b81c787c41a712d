"""Dumps a job with its logs, and lets it go on from its newest checkpoint that is whole: as a supervisor does.

Run as a program: `saving.py dump JOB LOG WITH_FILES` or `saving.py resume JOB`; it answers with one JSON document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from harness.command import Ckpt

from ckpt.cli import wiring
from ckpt.cli.output import Output
from ckpt.cli.progress import telling
from ckpt.errors import CkptError
from ckpt.flow.dump import DumpCall, dump
from ckpt.flow.resume import ResumeCall, resume
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, JobName, Nanoseconds


class Saving:
    """Calls this file as a program, with the store and the state of a test."""

    def __init__(self, ckpt: Ckpt) -> None:
        self._ckpt = ckpt

    def __call__(self, *words: object, **environ: str) -> dict[str, Any]:
        """What it answered, an error too; {} where it was killed."""
        done = subprocess.run(
            [sys.executable, __file__, *map(str, words)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=self._ckpt.environ({"PYTHONPATH": ":".join(sys.path), **environ}),
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        assert answer or done.returncode < 0, done.stderr
        return answer


def _dump(place: str, job: JobName, log: str, with_files: str) -> dict[str, Any]:
    with telling(Output(json=True)) as announce:
        report = dump(
            DumpCall(
                target=TargetRef(kind=TargetKind.JOB, name=job),
                job=None,
                tags=(),
                message="",
                stop=False,
                options=DumpOptions(),
                freeze_timeout=Nanoseconds(10 * SECOND),
                with_files=(with_files,),
                appended=(log,),
            ),
            wiring.dump_ports(place, announce),
        )
    return {"id": report.id, "warnings": report.warnings}


def _resume(place: str, job: JobName) -> dict[str, Any]:
    call = ResumeCall(job=job, time=TimePolicy.SUSPEND, inodes=InodePolicy.KEEP)
    with telling(Output(json=True)) as announce:
        ports = wiring.restore_ports(place, announce)
        found = resume(call, ports, wiring.open_store(place), wiring.jobs())
    if found is None:
        return {"id": None}
    return {"id": found.report.id, "damaged": found.damaged, "warnings": found.report.warnings}


def _main(place: str, act: str, job: str, *paths: str) -> None:
    try:
        answer = _dump(place, JobName(job), *paths) if act == "dump" else _resume(place, JobName(job))
    except CkptError as error:
        answer = {"error": error.message, "exit_code": error.exit_code, "hint": error.advice}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main(os.environ["CKPT_STORE"], *sys.argv[1:])
