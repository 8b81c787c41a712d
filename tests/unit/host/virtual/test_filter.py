from __future__ import annotations

import struct

import pytest

from ckpt.errors import FeatureMissing
from ckpt.host.virtual.calls import stat_calls
from ckpt.host.virtual.filter import is_ours, layer_filter, number_of

LAYER = 0xC0FFEE11
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
EMPTY_PATH = 0x1000
MACHINES = ("x86_64", "aarch64")


def decide(program: bytes, number: int, arch: int, pointer: int = 0, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would do: an interpreter of the instructions that seccomp allows and we use."""
    call = struct.pack("<iIQ6Q", number, arch, pointer, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, value = instructions[place]
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", call, value)
            case 0x06:
                return value
            case 0x15 | 0x25 | 0x35 | 0x45:
                truth = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[code]
                place += if_true if truth else if_false
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_exactly_the_stat_calls_of_the_architecture_are_notified(machine: str) -> None:
    calls = stat_calls(machine)
    assert calls is not None
    program = layer_filter(LAYER, machine=machine)
    notified = {each for each in range(500) if decide(program, each, calls.audit_arch) == NOTIFY}
    wanted = {calls.stat, calls.lstat, calls.fstat, calls.fstatat, calls.statx} - {-1}
    assert notified == wanted
    assert decide(program, calls.fstatat | 0x40000000, calls.audit_arch) == ALLOW  # x32
    assert all(decide(program, each, 0x40000003) == ALLOW for each in wanted)  # i386


@pytest.mark.parametrize("machine", MACHINES)
def test_descriptors_only_looks_for_calls_without_a_path(machine: str) -> None:
    calls = stat_calls(machine)
    assert calls is not None
    program = layer_filter(LAYER, machine=machine, descriptors_only=True)

    def asked(number: int, *arguments: int) -> int:
        return decide(program, number, calls.audit_arch, arguments=arguments)

    assert asked(calls.fstat, 3) == NOTIFY
    assert asked(calls.fstatat, 3, 1, 1, EMPTY_PATH) == asked(calls.statx, 3, 1, EMPTY_PATH | 0x100) == NOTIFY
    assert asked(calls.fstatat, 3, 1, 1, 0x100) == asked(calls.statx, 3, 1, 0, EMPTY_PATH) == ALLOW
    if calls.stat >= 0:
        assert asked(calls.stat, 1) == asked(calls.lstat, 1) == ALLOW


@pytest.mark.parametrize(
    ("start", "end"),
    [(0x7F0012345000, 0x7F0012346000), (0x7F00FFFFF000, 0x7F0100001000), (0x7F0100000000, 0x7F0100000002)],
)
def test_the_calls_of_trusted_code_pass_and_no_others(start: int, end: int) -> None:
    calls = stat_calls("x86_64")
    assert calls is not None
    program = layer_filter(LAYER, machine="x86_64", trusted=(start, end))

    def asked(pointer: int) -> int:
        return decide(program, calls.fstat, calls.audit_arch, pointer)

    # The kernel reports where the call returns to: behind its instruction.
    assert asked(start) == asked(end + 1) == asked(start + (1 << 32)) == asked(0) == NOTIFY
    assert asked(start + 1) == asked(end) == asked((start + end) // 2 + 1) == ALLOW


def test_a_filter_of_ours_is_known_by_its_marker_and_number() -> None:
    for machine in MACHINES:
        assert number_of(layer_filter(LAYER, machine=machine, descriptors_only=True, trusted=(1, 9))) == LAYER
    program = layer_filter(LAYER)
    assert is_ours(program)
    for foreign in (b"", program[:16], program[8:], bytes(64), program[:8] + bytes(8) + program[16:]):
        assert not is_ours(foreign)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(FeatureMissing, match="architecture"):
        layer_filter(LAYER, machine="pdp11")
