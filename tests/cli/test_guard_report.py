"""What a guard tells never ends it."""

from __future__ import annotations

import subprocess
import sys

# A process of its own: what Python does with a stream at its end belongs to it.
_TELLING = """
import sys
from ckpt.cli.guard_report import GuardTeller
from ckpt.cli.output import Output
from ckpt.model.guarding import Watched
teller = GuardTeller(output=Output(json=sys.argv[1] == "json"), collects=False)
for _ in range(3):
    teller.ended(Watched(cgroup="/memory/box"))
print("goes on", file=sys.stderr)
"""


def test_a_log_on_a_full_disk_does_not_end_the_guard() -> None:
    for form in ("text", "json"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-c", _TELLING, form],
                check=False,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
            )
        assert (done.returncode, done.stderr) == (0, "goes on\n")
