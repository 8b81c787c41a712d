"""Protection keys, which no CPU at hand has: with what /proc/PID/smaps of one that has them tells."""

from __future__ import annotations

import os

import pytest

from ckpt.host.inspection import snapshot
from ckpt.host.preflight import area_rules, areas, checking
from ckpt.host.preflight.areas import FlaggedArea
from ckpt.host.preflight.facts import Facts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Severity
from ckpt.units import Pid

SMAPS = (
    b"7f00-8f00 rw-p 00000000 00:00 0 \nSize: 4 kB\nProtectionKey:         3\nVmFlags: rd wr mr mw me ac \n"
    b"8f00-9f00 rw-p 00000000 00:00 0 \nSize: 4 kB\nProtectionKey:         3\nVmFlags: rd wr mr mw me ac \n"
    b"9f00-af00 rw-p 00000000 00:00 0   [heap]\nProtectionKey:         0\nVmFlags: rd wr mr \n"
)


def test_protection_keys_are_read_from_smaps() -> None:
    first, second = areas.parse_smaps(SMAPS)
    assert (first.start, first.end, first.key) == (0x7F00, 0x8F00, 3)
    assert second.key == 3


def test_protection_keys_are_told_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = Pid(os.getpid())

    def flagged_areas(_facts: Facts) -> dict[Pid, tuple[FlaggedArea, ...]]:
        return {pid: areas.parse_smaps(SMAPS)}

    monkeypatch.setattr(area_rules, "flagged_areas", flagged_areas)
    facts = Facts(snapshot.take([pid], "", None), DumpOptions(), "")
    (finding,) = checking.check(facts, rules=area_rules.RULES)
    assert (finding.rule, finding.severity) == ("protection-keys", Severity.WARNING)
    assert "uses 1 protection key(s) (pkey_alloc)" in finding.message


@pytest.mark.parametrize(
    ("status", "soon"),
    [
        ({"VmRSS": "4194304 kB", "VmSwap": "0 kB", "VmPTE": "8192 kB"}, True),
        ({"VmRSS": "4194304 kB", "VmSwap": "4 kB", "VmPTE": "8192 kB"}, False),
        ({"VmRSS": "65536 kB", "VmPTE": "131076 kB"}, False),
        ({}, True),
    ],
)
def test_memory_whose_walk_takes_long_is_not_walked(status: dict[str, str], *, soon: bool) -> None:
    assert areas.is_soon_walked(status) is soon
