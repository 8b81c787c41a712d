"""Which stubs the threads of a stopped process stand in, or will return into.

A signal may interrupt a thread in a stub. The kernel then puts its address on the stack that the handler runs on,
and the thread goes on there when the handler ends: unmapping the stub meanwhile would kill it. So every word of a
thread's stack that could be such an address counts as one. What that cannot see: a second handler that runs on a
stack of its own (sigaltstack) and interrupted the first.
Source: sigreturn(2), proc_pid_syscall(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ckpt.host.ptrace import Tracee
from ckpt.host.virtual.mappings import Mapping, mappings_of
from ckpt.host.virtual.stub import PAGE, Stub
from ckpt.units import Pid

_STACK_BYTES_MAX: Final = 8 * 1024 * 1024


def stubs_in_use(tracee: Tracee, stubs: Sequence[Stub]) -> list[Stub]:
    """Those of the stubs that a thread stands in, or that an address on a thread's stack leads back to.

    All of them where a thread's stack cannot be told.

    Raises:
        OSError: the process's memory cannot be read.
    """
    if not stubs:
        return []
    pages = {pointer // PAGE for pointer in tracee.instruction_pointers()}
    mappings = mappings_of(tracee.pid)
    for thread in tracee.threads:
        stack = _stack_of(tracee, thread, mappings)
        if stack is None:
            return list(stubs)
        pages.update(word // PAGE for word in memoryview(stack).cast("Q"))
    return [stub for stub in stubs if stub.address // PAGE in pages]


def _stack_of(tracee: Tracee, thread: Pid, mappings: Sequence[Mapping]) -> bytes | None:
    """The words that lie on the stack of a thread; None where they cannot be told, or are too many."""
    with open(f"/proc/{tracee.pid}/task/{thread}/syscall", encoding="ascii") as stream:
        fields = stream.read().split()
    if len(fields) < 3:
        return None
    pointer = int(fields[-2], 16) & ~7
    for mapping in mappings:
        if mapping.start <= pointer < mapping.end:
            # The stacks of several threads may be one mapping: then a guard between them ends the reading.
            stack = tracee.read(pointer, min(mapping.end - pointer, _STACK_BYTES_MAX))
            return stack[: len(stack) // 8 * 8] if len(stack) < _STACK_BYTES_MAX else None
    return None
