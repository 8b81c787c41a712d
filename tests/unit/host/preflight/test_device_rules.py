"""GPUs, which no machine at hand has: what is said of them with CRIU's plug-ins and without; and other devices."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ckpt.host.inspection.holdings import Hold, Holdings
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.preflight import checking, device_rules
from ckpt.host.preflight.facts import Facts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.model.inodes import RoleKind
from ckpt.model.workload import Process
from ckpt.units import Pid

PID = Pid(os.getpid())


def device_status(major: int, minor: int) -> os.stat_result:
    fields = [stat.S_IFCHR | 0o666, 7, 6, 1, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 4096, 0]
    return os.stat_result(fields, {"st_rdev": os.makedev(major, minor)})


def said_of(path: str, major: int, *, mapped: bool = False) -> tuple[Finding, ...]:
    kind, detail = (RoleKind.MAP, "1000-2000 rw-s") if mapped else (RoleKind.FD, "5 O_RDWR")
    hold = Hold(PID, kind, detail, path, device_status(major, 255), f"/proc/{PID}/fd/5")
    holdings = Holdings(pid=PID, holds=[hold], special_maps=(path,) if mapped else ())
    process = Process(
        pid=PID,
        pid_inside=PID,
        parent=Pid(1),
        name="train",
        state="S",
        threads=(PID,),
        command_line=(),
        uid=0,
        gid=0,
        capabilities=0,
        seccomp=0,
        cgroup="",
    )
    facts = ProcessFacts(
        process=process, tracer=Pid(0), deadline=False, children=(), namespaces={"net": 1}, executable=""
    )
    snapshot = Snapshot(processes={PID: facts}, holdings={PID: holdings}, trees=(), strays=())
    return checking.check(Facts(snapshot, DumpOptions(), ""), rules=device_rules.RULES)


GPUS = {
    "gpu-nvidia": ("/dev/nvidiactl", 195, ("cuda_plugin.so", "cuda-checkpoint")),
    "gpu-amd": ("/dev/kfd", 511, ("amdgpu_plugin.so",)),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("rule", GPUS)
def test_a_gpu_needs_the_help_of_criu(
    rule: str, *, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, major, needed = GPUS[rule]
    monkeypatch.setenv("CRIU_LIBS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    (finding,) = said_of(path, major, mapped=mapped)
    assert (finding.rule, finding.severity) == (rule, Severity.BLOCKER)
    assert all(name in finding.message and name in finding.remedy for name in needed)

    for name in needed:
        (tmp_path / name).touch(mode=0o755)
    (finding,) = said_of(path, major, mapped=mapped)
    assert (finding.rule, finding.severity) == (rule, Severity.INFO)


def test_a_device_that_only_lies_beside_a_gpu_is_a_device() -> None:
    (finding,) = said_of("/dev/video0", 81)
    assert (finding.rule, finding.severity) == ("device", Severity.BLOCKER)
    assert finding.subject == "fd 5 → /dev/video0"


def test_a_character_device_that_is_mapped_is_a_blocker() -> None:
    (finding,) = said_of("/dev/mem", 1, mapped=True)
    assert (finding.rule, finding.severity) == ("mapped-device", Severity.BLOCKER)
    assert "maps /dev/mem, a device" in finding.message
