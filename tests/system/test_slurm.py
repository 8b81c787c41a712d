"""scripts/slurm/ckpt-job.sh in a real Slurm: what interrupts a job, and that it goes on elsewhere, and only once."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from harness.command import Ckpt
from harness.slurm import Slurm
from harness.traces import Traces
from harness.waiting import await_condition

SCRIPT = Path(__file__).parents[2] / "scripts/slurm/ckpt-job.sh"

# Each line depends on all before it: what is lost, done twice or done wrong shows in every line after.
_CHAIN = """
import hashlib, os, sys, time
value, number = b"", 0
while not os.path.exists(sys.argv[1]):
    value = hashlib.sha256(value + b"%d" % number).digest()
    print(number, value.hex(), os.uname().nodename, flush=True)
    number += 1
    time.sleep(0.02)
sys.exit(3)
"""


class Batch:
    """One job that computes a chain until it is told that it is enough."""

    def __init__(self, slurm: Slurm, name: str, *options: str) -> None:
        """Submit it.

        Args:
            slurm: The cluster.
            name: Of its directory among those that are shared.
            options: Of sbatch.
        """
        self._slurm = slurm
        self._shared = slurm.shared / name
        self._shared.mkdir()
        self._log, self._enough = self._shared / "log", self._shared / "enough"
        program = self._shared / "chain.py"
        program.write_text(_CHAIN)
        self.job = slurm.submit(
            SCRIPT,
            *("--shared", self._shared, "--lease", 10, "--every", "1s", "--log", self._log),
            *("--", sys.executable, program, self._enough),
            options=("--requeue", "--signal=B:USR1@30", *options),
        )

    def await_work(self, *, restarts: int, timeout_s: float = 60) -> str:
        """Wait until it does its work after so many restarts; never does it run on two nodes.

        Returns:
            The node where.
        """

        def restarted() -> bool:
            shown = self._slurm.look(self.job)
            return shown.state == "RUNNING" and shown.restarts == restarts

        self._await(restarted, f"restart {restarts}", timeout_s)
        node = self._slurm.look(self.job).node
        self._await(lambda: self._nodes()[-50:] == [node] * 50, f"it to run on {node}", timeout_s)
        return node

    def await_checkpoint(self) -> None:
        """Wait until there is one that it could go on from."""
        manifests = self._shared / "store/manifests"
        self._await(lambda: any(each.is_file() for each in manifests.rglob("*")), "a checkpoint", 20)

    def finish(self) -> list[str]:
        """Let it end; returns the nodes that its lines are from, in their order.

        Raises:
            AssertionError: its exit code did not come through, or a line is lost, doubled or wrong.
        """
        self._enough.touch()
        self._await(lambda: self._slurm.look(self.job).state not in ("RUNNING", "COMPLETING"), "its end", 20)
        assert self._slurm.look(self.job).exit_code == "3:0", self._report()
        value = b""
        for number, line in enumerate(self._lines()):
            value = hashlib.sha256(value + b"%d" % number).digest()
            assert line.split()[:2] == [str(number), value.hex()], f"line {number}"
        nodes = self._nodes()
        return [node for former, node in zip(["", *nodes], nodes, strict=False) if node != former]

    def said(self) -> str:
        """What is in the job's output besides the chain."""
        lines = self._slurm.output(self.job).splitlines()
        return "\n".join(line for line in lines if not re.match(r"\d+ [0-9a-f]{64}", line))

    def _await(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        def holds() -> bool:
            copies = self._slurm.copies(self.job)
            assert len(copies) < 2, f"job {self.job} runs on {copies}"
            return condition()

        await_condition(holds, lambda: f"{what}\n{self._report()}", timeout_s=timeout_s)

    def _report(self) -> str:
        shown = self._slurm.look(self.job)
        return f"{shown}; last lines on {self._nodes()[-1:]}\n{self.said()}\n{self._slurm.log()}"

    def _lines(self) -> list[str]:
        text = self._log.read_text() if self._log.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def _nodes(self) -> list[str]:
        return [line.split()[2] for line in self._lines()]


def test_a_job_that_is_preempted_and_requeued_goes_on_on_other_nodes(traces: Traces, ckpt: Ckpt) -> None:
    slurm = Slurm(traces, ckpt, nodes=2)
    batch = Batch(slurm, "chain")
    first = batch.await_work(restarts=0)
    urgent = traces.folder / "urgent.sh"
    urgent.write_text("#!/bin/sh\nexec sleep 600\n")
    number = slurm.submit(urgent, options=("-p", "high", "-w", first))
    second = batch.await_work(restarts=1)
    slurm.order("scancel", number)
    # SIGTERM to all processes that Slurm finds of it, and after KillWait SIGKILL.
    slurm.order("scontrol", "requeue", batch.job)
    slurm.order("scontrol", "update", f"NodeName={second}", "State=DRAIN", "Reason=test")
    assert batch.await_work(restarts=2) == first
    assert batch.finish() == [first, second, first]


def test_a_time_limit_and_lost_nodes_end_no_job_and_no_job_runs_twice(traces: Traces, ckpt: Ckpt) -> None:
    slurm = Slurm(traces, ckpt, nodes=5)
    lost, unheard = Batch(slurm, "lost"), Batch(slurm, "unheard")
    limited = Batch(slurm, "limited", "--time=1", "--signal=B:USR1@55")
    nodes = [batch.await_work(restarts=0) for batch in (lost, unheard, limited)]
    lost.await_checkpoint()
    slurm.hide_shared(nodes[0])
    for node in nodes[:2]:
        slurm.isolate(node)
    limited.await_work(restarts=1, timeout_s=100)
    assert "is requeued" in limited.said()
    limited.finish()

    # One loses the shared directory, too, and kills its copy; the other hears there that another node waits.
    for batch, node, why in (
        (lost, nodes[0], "could not be renewed"),
        (unheard, nodes[1], "another node wants"),
    ):
        other = batch.await_work(restarts=1, timeout_s=100)
        assert why in batch.said()
        assert batch.finish() == [node, other]
