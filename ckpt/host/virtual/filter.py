"""The seccomp filter that hands a task's stat calls to a supervisor, and lets every other call run.

It begins with jumps that go to the next instruction either way: they do nothing, and hold the marker and the
layer's number, by which a filter of ours is known again in a task or in an image set.
Rule: for calls that are none of ours the program looks at architecture and number only; so the kernel finds that
it always allows them, and does not run it for them at all.
Source: seccomp(2), bpf(4); kernel/seccomp.c (seccomp_is_const_allow, which knows jumps but no constant loads).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ckpt.errors import FeatureMissing
from ckpt.host.virtual.calls import AT_EMPTY_PATH, stat_calls

INSTRUCTION_BYTES: Final = 8

_INSTRUCTION: Final = struct.Struct("<HBBI")
_LOAD, _RETURN = 0x20, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_GREATER, _JUMP_IF_NOT_LESS, _JUMP_IF_SET = 0x15, 0x25, 0x35, 0x45
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
# struct seccomp_data
_NUMBER, _ARCH, _POINTER_LOW, _POINTER_HIGH, _ARGUMENTS = 0, 4, 8, 12, 16
_MARKERS: Final = (0x636B7074, 0x696E6F64)
_HALF: Final = 1 << 32


def layer_filter(
    layer: int, *, descriptors_only: bool = False, trusted: tuple[int, int] | None = None, machine: str = ""
) -> bytes:
    """The program, as struct sock_filter[].

    Args:
        layer: The layer's number, 32 bits, which number_of() finds again.
        descriptors_only: Only calls that name a file by a descriptor alone go to the supervisor.
        trusted: Addresses (first, end) of code whose calls are allowed.
        machine: The architecture, as uname -m names it; this machine's by default.

    Raises:
        FeatureMissing: the architecture's call numbers are not known.
    """
    calls = stat_calls(machine)
    if calls is None:
        raise FeatureMissing(
            feature="the numbers of the stat calls of this architecture",
            remedy="Restore with --inodes ignore, or on x86-64.",
        )
    tail = tuple(_after_match(trusted))
    program = [_jump(_JUMP_IF_EQUAL, mark, 0, 0) for mark in (*_MARKERS, layer)]
    program += (_load(_ARCH), _jump(_JUMP_IF_EQUAL, calls.audit_arch, 1, 0), _return(_ALLOW), _load(_NUMBER))
    program += _case(calls.fstat, None, tail)
    if not descriptors_only:
        for number in (calls.stat, calls.lstat):
            program += _case(number, None, tail) if number >= 0 else ()
    for number, flags_argument in ((calls.fstatat, 3), (calls.statx, 2)):
        program += _case(number, flags_argument if descriptors_only else None, tail)
    program.append(_return(_ALLOW))
    return b"".join(program)


def number_of(program: bytes) -> int | None:
    """The number of the layer that a filter belongs to; None if it is none of ours."""
    if len(program) < (len(_MARKERS) + 1) * INSTRUCTION_BYTES:
        return None
    for place, mark in enumerate(_MARKERS):
        if program[place * 8 : place * 8 + 8] != _jump(_JUMP_IF_EQUAL, mark, 0, 0):
            return None
    code, if_true, if_false, number = _INSTRUCTION.unpack_from(program, len(_MARKERS) * INSTRUCTION_BYTES)
    return number if (code, if_true, if_false) == (_JUMP_IF_EQUAL, 0, 0) else None


def is_ours(program: bytes) -> bool:
    """Whether a filter is one of ours."""
    return number_of(program) is not None


def _case(number: int, flags_argument: int | None, tail: tuple[bytes, ...]) -> Iterator[bytes]:
    """If the call has this number: notify, or allow, and end. Else go on, with the number loaded still."""
    body = tail
    if flags_argument is not None:
        body = (
            _load(_ARGUMENTS + 8 * flags_argument),
            _jump(_JUMP_IF_SET, AT_EMPTY_PATH, 1, 0),
            _return(_ALLOW),
            *tail,
        )
    yield _jump(_JUMP_IF_EQUAL, number, 0, len(body))
    yield from body


def _after_match(trusted: tuple[int, int] | None) -> Iterator[bytes]:
    # The kernel reports the address behind the call's instruction.
    for first, last in _within_halves(trusted[0] + 1, trusted[1]) if trusted else ():
        yield _load(_POINTER_HIGH)
        yield _jump(_JUMP_IF_EQUAL, first // _HALF, 0, 4)
        yield _load(_POINTER_LOW)
        yield _jump(_JUMP_IF_GREATER, last % _HALF, 2, 0)
        yield _jump(_JUMP_IF_NOT_LESS, first % _HALF, 0, 1)
        yield _return(_ALLOW)
    yield _return(_NOTIFY)


def _within_halves(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The range in pieces whose addresses share their upper 32 bits."""
    while first <= last:
        end = min(last, first | (_HALF - 1))
        yield first, end
        first = end + 1


def _load(offset: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD, 0, 0, offset)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)


def _return(action: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, action)
