"""A program without ties to its starter, which does what a file asks of it: before a dump, and after a restore."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from harness.subjects import Workload
from harness.waiting import await_condition

PROGRAM = """
import json, mmap, os, sys, time
held, asked, said = {}, sys.argv[1] + "/asked", sys.argv[1] + "/said"
open(sys.argv[1] + "/ready", "w").close()
while True:
    if os.path.exists(asked):
        with open(asked) as stream:
            program = json.load(stream)
        os.unlink(asked)
        answer = None
        exec(program)
        with open(said + ".new", "w") as stream:
            json.dump(answer, stream)
        os.rename(said + ".new", said)
    time.sleep(0.005)
"""


class Asked:
    """The program, running in the workload's cgroup; it is asked through files in `folder`."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._folder = folder / f"asked-{len(os.listdir(folder))}"
        self._folder.mkdir()
        self.pid = workload.spawn(
            [sys.executable, "-I", "-S", "-c", PROGRAM, str(self._folder)], self._folder
        )
        await_condition((self._folder / "ready").exists, "the program to be ready")

    def do(self, program: str) -> Any:
        """Let it run the program, and give what it left in `answer`."""
        new, said = self._folder / "asked.new", self._folder / "said"
        new.write_text(json.dumps(program))
        new.rename(self._folder / "asked")
        await_condition(said.exists, f"an answer to {program}")
        answer = json.loads(said.read_text())
        said.unlink()
        return answer
