"""Patch the stat calls of a stopped process's libc, so that they show recorded identities at native speed.

Each call site in libc's text (callsites.py) gets a jump to a stub near it (stub.py), which makes the call and
changes the two numbers in its result. The patched pages and the stub are private memory: a dump and a restore by
CRIU keep them, fork inherits them, exec drops them. A process that calls past its libc is not reached at all: this
is an accelerator for a seccomp filter that lets the stub's own calls pass.
Rules:
- All threads are stopped. They may stand anywhere, in a stub too: what has made its call ends it with the table
  that was right then, what has not makes it by the new way. So an old stub stays mapped for as long as a thread
  stands in it, or will return into it from a signal handler.
- What is written is read back. A failure half way puts everything back.
- Calls are made in the task only to map and to unmap; its seccomp filters do not see them.
Source: mmap(2), MAP_FIXED_NOREPLACE; proc_pid_mem(5); proc_pid_syscall(5); seccomp(2).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.ptrace import Tracee
from ckpt.host.virtual.callsites import SONAMES, CallSites, find_call_sites
from ckpt.host.virtual.mappings import mappings_of, rooms, texts_of_library
from ckpt.host.virtual.standing import stubs_in_use
from ckpt.host.virtual.stub import (
    JUMP_BYTES,
    PAGE,
    RETIRED_MAX,
    SITES_MAX,
    Site,
    Stub,
    StubTable,
    decode_pairs,
    decode_stub,
    encode_stub,
    forward,
    jump,
    stub_bytes,
)
from ckpt.model.inodes import Identity

_SYS_MMAP, _SYS_MUNMAP = 9, 11
_PROT_READ_EXEC: Final = 0x1 | 0x4
_MAP_HERE: Final = 0x2 | 0x20 | 0x100000  # private, anonymous, fixed but never over something
_JUMP_REACH: Final = (1 << 31) - PAGE
_ATTEMPTS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A process whose libc is patched at so many sites.

    `trusted` are the address of the stub's first instruction and the one behind its last: a system call with an
    instruction pointer between them is the stub's own.
    """

    trusted: tuple[int, int]
    sites: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPatched:
    """Why a process's libc is not patched; it has no stub that is in use."""

    reason: str


class _CannotPatch(Exception):
    """The reason, in words."""


def patch(tracee: Tracee, table: StubTable) -> Patch | NotPatched:
    """Show the identities of the table in the process's libc from now on, whatever it carried before.

    With an empty table, or when it cannot be done, the process is left with the real numbers.

    Raises:
        OsRefused: it could not be put back into a known state.
    """
    try:
        if table.entries > 0:
            with tracee.unfiltered():
                return _install(tracee, _look(tracee), table)
        reason = "the identity of no file differs"
    except _CannotPatch as error:
        reason = str(error)
    except OSError as error:
        reason = f"its memory cannot be changed: {error.strerror}"
    unpatch(tracee)
    return NotPatched(reason=reason)


def unpatch(tracee: Tracee) -> None:
    """Give the process's libc its own bytes back, and unmap the stub unless a thread is still in it.

    Nothing happens to a process that is not patched.

    Raises:
        OsRefused: its memory cannot be changed.
    """
    try:
        found = _look(tracee)
        with tracee.unfiltered(), ExitStack() as undo:
            for site in found.patched:
                _write(tracee, undo, site.address, site.original)
            old = _old_stubs(tracee, found.stubs)
            _forward(tracee, undo, old, {site.address: site.address for site in found.sites})
            undo.pop_all()
            _sweep(tracee, old)
    except _CannotPatch:
        return
    except OSError as error:
        raise OsRefused(
            operation="unpatch", subject=f"process {tracee.pid}", reason=error.strerror or ""
        ) from error


def carried(tracee: Tracee) -> tuple[tuple[Identity, Identity], ...]:
    """The identities that the process's libc shows, each real one with what is shown for it, as its memory has
    them now; empty where it is not patched.

    Raises:
        OsRefused: its memory cannot be read.
    """
    try:
        stubs = _look(tracee).stubs
        return tuple(
            pair for stub in stubs for pair in decode_pairs(tracee.read(stub.address, stub.size_bytes))
        )
    except _CannotPatch:
        return ()
    except OSError as error:
        raise OsRefused(
            operation="read", subject=f"the memory of process {tracee.pid}", reason=error.strerror or ""
        ) from error


def _look(tracee: Tracee) -> CallSites:
    texts = tuple(texts_of_library(tracee.pid, mappings_of(tracee.pid), SONAMES))
    if not texts:
        raise _CannotPatch("it has no glibc mapped: a static program, or another libc")
    found = find_call_sites(texts, tracee.read)
    if not found.sites:
        raise _CannotPatch("no stat call of its libc could be recognized")
    if len(found.sites) > SITES_MAX:
        raise _CannotPatch(f"its libc has {len(found.sites)} places that look like stat calls")
    return found


def _install(tracee: Tracee, found: CallSites, table: StubTable) -> Patch:
    sites = found.sites
    if len(found.stubs) == 1 and not found.intact and _is_same(tracee, found.stubs[0], sites, table):
        return Patch(trusted=found.stubs[0].code, sites=len(sites))
    if any(
        site.address < pointer < site.address + JUMP_BYTES
        for pointer in tracee.instruction_pointers()
        for site in sites
    ):
        raise _CannotPatch("a thread stands inside of what would be replaced")
    old = _old_stubs(tracee, found.stubs)
    used = stubs_in_use(tracee, old)
    address = _map(tracee, stub_bytes(table), sites)
    with ExitStack() as undo:
        undo.callback(tracee.call, _SYS_MUNMAP, address, stub_bytes(table))
        retired = tuple(stub.address for stub in used[:RETIRED_MAX])
        content = encode_stub(table, address=address, sites=sites, retired=retired)
        tracee.write(address, content)
        _check(tracee, address, content)
        new = decode_stub(content, address)
        assert new is not None
        blocks = {site.address: new.block(index) for index, site in enumerate(sites)}
        for site in sites:
            _write(tracee, undo, site.address, jump(site.address, blocks[site.address]))
        _forward(tracee, undo, old, blocks)
        undo.pop_all()
    _sweep(tracee, [stub for stub in old if stub not in used])
    return Patch(trusted=new.code, sites=len(sites))


def _is_same(tracee: Tracee, stub: Stub, sites: tuple[Site, ...], table: StubTable) -> bool:
    """Whether this very stub is there: the process shares its memory with one that was patched just now."""
    wanted = encode_stub(table, address=stub.address, sites=sites, retired=stub.retired)
    return stub.size_bytes == len(wanted) and tracee.read(stub.address, stub.size_bytes) == wanted


def _map(tracee: Tracee, size: int, sites: Sequence[Site]) -> int:
    """New memory that can be run, within a jump's reach of all sites. Raises _CannotPatch, OSError."""
    first, last = sites[0].address, sites[-1].after
    attempts = 0
    for address in rooms(mappings_of(tracee.pid), size, (first + last) // 2):
        if last - address >= _JUMP_REACH or address + PAGE - first >= _JUMP_REACH:
            continue
        attempts += 1
        if attempts > _ATTEMPTS_MAX:
            break
        try:
            got = tracee.call(_SYS_MMAP, address, size, _PROT_READ_EXEC, _MAP_HERE, -1, 0)
        except OSError as error:
            if error.errno == errno.EEXIST:
                continue
            raise _CannotPatch(f"no memory can be mapped in it: {error.strerror}") from error
        if got == address:
            return address
        tracee.call(_SYS_MUNMAP, got, size)
    raise _CannotPatch("there is no room near its libc")


def _write(tracee: Tracee, undo: ExitStack, address: int, content: bytes) -> None:
    """Change text, and be able to change it back."""
    undo.callback(tracee.write, address, tracee.read(address, len(content)))
    tracee.write(address, content)
    _check(tracee, address, content)


def _check(tracee: Tracee, address: int, content: bytes) -> None:
    if tracee.read(address, len(content)) != content:
        raise OSError(errno.EIO, "what was written there is not there")


def _forward(tracee: Tracee, undo: ExitStack, stubs: Iterable[Stub], targets: dict[int, int]) -> None:
    """Send who is about to make a call in these stubs to the target for its site."""
    for stub in stubs:
        for index, site in enumerate(stub.sites):
            if stub.can_forward and site.address in targets:
                block = stub.block(index)
                _write(tracee, undo, block, forward(block, targets[site.address]))


def _old_stubs(tracee: Tracee, stubs: Iterable[Stub]) -> list[Stub]:
    """These stubs and those that they took the place of, the newest first."""
    found: dict[int, Stub] = {}
    for stub in stubs:
        found.setdefault(stub.address, stub)
        for address in reversed(stub.retired):
            # It may have been unmapped by the process itself, or be something else by now.
            try:
                earlier = decode_stub(tracee.read(address, PAGE), address)
            except OSError:
                continue
            if earlier is not None:
                found.setdefault(address, earlier)
    return list(found.values())


def _sweep(tracee: Tracee, stubs: Iterable[Stub]) -> None:
    """Unmap those that no thread stands in or returns to."""
    stubs = list(stubs)
    if not stubs:
        return
    used = stubs_in_use(tracee, stubs)
    for stub in stubs:
        if stub not in used:
            tracee.call(_SYS_MUNMAP, stub.address, stub.size_bytes)
