"""A real dump and restore tell each phase, and every byte of the images."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.command import Ckpt
from harness.subjects import Workload

pytestmark = pytest.mark.system


def ends_of_phases(stderr: str) -> dict[str, dict[str, Any]]:
    """The last event of each phase, in the order of the phases."""
    found = {}
    for line in stderr.splitlines():
        event = json.loads(line)
        if "phase" in event:
            found[event["phase"]] = event
    return found


def test_a_dump_and_a_restore_tell_their_phases_and_all_bytes(ckpt: Ckpt, workload: Workload) -> None:
    workload.start("ballast")
    dumped = ckpt.run("dump", "--json", "--json-progress", "--stop", "--cgroup", workload.cgroup)
    assert dumped.returncode == 0, dumped.stderr
    document = json.loads(dumped.stdout)
    phases = ends_of_phases(dumped.stderr)
    assert [phase for phase in phases if phase in ("starting CRIU", "dumping", "storing the images")] == [
        "starting CRIU",
        "dumping",
        "storing the images",
    ]
    storing = phases["storing the images"]
    assert storing["bytes"] == storing["total_bytes"] == document["image_bytes"]
    assert phases["making it durable"]["event"] == "done"
    workload.await_empty()

    restored = ckpt.run("restore", "--json", "--json-progress", document["id"])
    assert restored.returncode == 0, restored.stderr
    phases = ends_of_phases(restored.stderr)
    reading = phases["reading the images"]
    assert reading["bytes"] == reading["total_bytes"] == document["image_bytes"]
    assert phases["restoring"]["event"] == "done"
    workload.check()
