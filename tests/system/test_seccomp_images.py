"""Real images of programs that have our filters: without these, CRIU restores them, and a new layer fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.bare_criu import BareCriu
from harness.layers import Layer, Program, compile_raw_stats, of

from ckpt.host import ptrace
from ckpt.host.criu.seccomp_images import layers_in, strip_filters
from ckpt.host.virtual.injection import layers_of, seccomp_mode
from ckpt.host.virtual.table import IdentityTable
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not ptrace.supported(), reason="the registers of this machine are not known"),
]

SHOWN = Identity(device=DeviceNumber(0x12345), inode=InodeNumber(987654321))
GETPRIORITY, PERSONALITY = 140, 135
EPERM = 1


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A program that is spoken to by FIFOs, which are there after a restore too."""
    compile_raw_stats(tmp_path)
    (tmp_path / "moved").write_text("moved")
    (tmp_path / "folder").mkdir()
    (tmp_path / "untouched").touch()
    os.symlink("moved", tmp_path / "link")
    program = Program(tmp_path / "dynamic", tmp_path, fifos=True)
    yield program
    program.end()


def restore(bare: BareCriu, images: Path, program: Program) -> None:
    program.process.wait()
    assert bare.restore(images) == program.pid


@pytest.mark.parametrize("own_filters", ["none", "before", "before and after"])
def test_a_covered_program_is_restored_without_its_layer_and_covered_anew(
    bare: BareCriu, tmp_path: Path, program: Program, own_filters: str
) -> None:
    assert program.ask("thread") == "0"
    if own_filters != "none":
        assert program.ask(f"forbid {GETPRIORITY}") == "0"
    table = IdentityTable.from_pairs([(of(tmp_path / "moved"), SHOWN)])
    layer = Layer(tmp_path / "state", table)
    try:
        layer.cover(program)
        if own_filters == "before and after":
            assert program.ask(f"forbid {PERSONALITY}") == "0"
        assert program.identity("stat 0 0 0 moved") == SHOWN
        images = tmp_path / "images"
        bare.dump(program.pid, images, leave_running=False)
    finally:
        layer.server.stop()
    assert layers_in(images) == {layer.place.number}
    assert strip_filters(images) == 1
    assert layers_in(images) == frozenset()
    assert strip_filters(images) == 0
    restore(bare, images, program)

    (tracee,) = ptrace.seize([program.pid], lambda: None)
    try:
        assert layers_of(tracee) == ()
        assert len(tracee.threads) == 2
    finally:
        tracee.detach()
    assert (seccomp_mode(program.pid) == 0) == (own_filters == "none")
    assert program.identity("stat 0 0 0 moved") == of(tmp_path / "moved")
    layer = Layer(tmp_path / "state", table)
    try:
        layer.cover(program)
        assert program.identity("stat 0 0 0 moved") == SHOWN
        assert program.ask(f"try {GETPRIORITY}") == str(EPERM if own_filters != "none" else 0)
        assert program.ask(f"try {PERSONALITY}") == str(EPERM if own_filters == "before and after" else 0)
    finally:
        program.end()
        layer.server.stop()


def test_dumps_in_the_middle_of_calls_change_no_answer(
    bare: BareCriu, tmp_path: Path, program: Program
) -> None:
    layer = Layer(tmp_path / "state", IdentityTable.from_pairs([(of(tmp_path / "moved"), SHOWN)]))
    try:
        layer.cover(program)
        assert program.ask(f"look 2 {SHOWN.inode} 0 moved") == "looking"
        for number in range(3):
            bare.dump(program.pid, tmp_path / f"images-{number}", leave_running=True)
        calls, wrong, _ = map(int, program.ask("enough").split())
        assert wrong == 0
        assert calls > 0
    finally:
        program.end()
        layer.server.stop()
