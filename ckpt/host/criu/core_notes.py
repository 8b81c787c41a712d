"""What an image set knows of a process's threads and registers, as the notes of a core file.

Rule: x86-64 alone; the pids in the notes are as the process itself saw them.
Source: images/{core,core-x86,mm,pstree}.proto; include/linux/elfcore.h (elf_prstatus, elf_prpsinfo),
arch/x86/include/asm/user_64.h (user_regs_struct, user_i387_struct), asm/fpu/types.h (xregs_state); fs/binfmt_elf.c
(fill_files_note).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.errors import FormatUnknown, ObjectCorrupt
from ckpt.host.criu.imagefile import read_entry
from ckpt.host.criu.pstree import ImageTask, read_tasks
from ckpt.host.elf_core import (
    NT_AUXV,
    NT_FILE,
    NT_FPREGSET,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_X86_XSTATE,
    note,
)
from ckpt.model.memory import Area, AreaKind
from ckpt.units import PAGE_BYTES, Pid

_X86_64: Final = 1
_NATIVE: Final = 1
_PID_MAX: Final = (1 << 31) - 1

# In the order of user_regs_struct.
# fmt: off
_REGISTERS: Final = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8",
    "ax", "cx", "dx", "si", "di", "orig_ax", "ip", "cs", "flags",
    "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)
# fmt: on

# Signal, the pending and the held ones; pid, parent, group, session; four times; registers; whether there are more.
_STATUS: Final = struct.Struct("<iiihxxQQiiii8Q27Qi4x")
# State and nice; flags, uid, gid, pid, parent, group, session, name, arguments.
_PROCESS: Final = struct.Struct("<bcbb4xQIIiiii16s80s")
_FLOATING: Final = struct.Struct("<HHHHQQII")
_FLOATING_BYTES: Final = 512
_STACK_WORDS: Final = 32
_XMM_WORDS: Final = 64
_YMM_WORDS: Final = 64
_XCR0_AT: Final = 464
_X87_SSE_AVX: Final = 7
_MAPPED: Final = frozenset((AreaKind.FILE, AreaKind.SHARED_FILE))


def core_images(images: Path, pid: Pid) -> tuple[str, ...]:
    """The names of the image files that core_notes() reads, after pstree.img.

    Raises:
        ObjectCorrupt, OsRefused: that cannot be read.
    """
    return (f"mm-{pid}.img", *(f"core-{thread}.img" for thread in _task(images, pid).threads))


def core_notes(images: Path, pid: Pid, command_line: tuple[str, ...], areas: Iterable[Area]) -> bytes:
    """The notes for the process that the images call `pid`, its main thread first.

    Raises:
        FormatUnknown: it is no process of x86-64.
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    task = _task(images, pid)
    main = _core(images, pid)
    memory = read_entry(images / f"mm-{pid}.img", "MM", "mm_entry")
    vector = struct.pack(f"<{len(memory.mm_saved_auxv)}Q", *memory.mm_saved_auxv)
    parts = [
        *_thread(task, pid, main),
        note("CORE", NT_PRPSINFO, _process(task, main, command_line)),
        note("CORE", NT_AUXV, vector),
        note("CORE", NT_FILE, _files(areas)),
    ]
    for thread in task.threads:
        if thread != pid:
            parts += _thread(task, thread, _core(images, thread))
    return b"".join(parts)


def thread_names(images: Path, pid: Pid) -> tuple[tuple[Pid, str], ...]:
    """The threads of the process with their names, as notes have no room for those; the main thread first.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    threads = sorted(_task(images, pid).threads, key=lambda thread: thread != pid)
    return tuple((thread, _name(_core(images, thread))) for thread in threads)


def _name(core: Any) -> str:
    # What is not UTF-8 comes as bytes or not, as the version of protobuf has it.
    return os.fsdecode(core.thread_core.comm or core.tc.comm)


def _task(images: Path, pid: Pid) -> ImageTask:
    for task in read_tasks(images):
        if task.pid == pid:
            if max(task.pid, task.parent, task.group, task.session, *task.threads) > _PID_MAX:
                raise ObjectCorrupt(
                    kind="image file", name="pstree.img", reason=f"task {pid} has numbers that no process has"
                )
            return task
    raise ObjectCorrupt(kind="image file", name="pstree.img", reason=f"it has no task {pid}")


def _core(images: Path, thread: Pid) -> Any:
    core = read_entry(images / f"core-{thread}.img", "CORE", "core_entry")
    if core.mtype != _X86_64 or core.thread_info.gpregs.mode != _NATIVE:
        raise FormatUnknown(
            subject=f"The process with the thread {thread}",
            reason="it is none of x86-64, and core files of others are not written",
            remedy="Use --format criu and a tool of that architecture.",
        )
    return core


def _thread(task: ImageTask, thread: Pid, core: Any) -> Iterator[bytes]:
    info = core.thread_info
    registers = [getattr(info.gpregs, name) for name in _REGISTERS]
    held = core.thread_core.blk_sigset
    ids = (thread, task.parent, task.group, task.session)
    yield note(
        "CORE",
        NT_PRSTATUS,
        _STATUS.pack(0, 0, 0, 0, 0, held, *ids, *([0] * 8), *registers, int(info.HasField("fpregs"))),
    )
    if info.HasField("fpregs"):
        floating = _floating(info.fpregs)
        yield note("CORE", NT_FPREGSET, floating)
        if len(info.fpregs.xsave.ymmh_space) == _YMM_WORDS:
            yield note("LINUX", NT_X86_XSTATE, _extended(floating, info.fpregs.xsave))


def _floating(state: Any) -> bytes:
    head = _FLOATING.pack(
        state.cwd & 0xFFFF,
        state.swd & 0xFFFF,
        state.twd & 0xFFFF,
        state.fop & 0xFFFF,
        state.rip,
        state.rdp,
        state.mxcsr,
        state.mxcsr_mask,
    )
    words = (*_exactly(state.st_space, _STACK_WORDS), *_exactly(state.xmm_space, _XMM_WORDS))
    return (head + struct.pack(f"<{len(words)}I", *words)).ljust(_FLOATING_BYTES, b"\0")


def _extended(floating: bytes, state: Any) -> bytes:
    """The area of XSAVE as far as AVX; which parts it has stands where the kernel puts XCR0 for debuggers."""
    mask = struct.pack("<Q", _X87_SSE_AVX)
    legacy = floating[:_XCR0_AT] + mask + floating[_XCR0_AT + len(mask) :]
    header = struct.pack("<8Q", state.xstate_bv & _X87_SSE_AVX, *([0] * 7))
    return legacy + header + struct.pack(f"<{_YMM_WORDS}I", *state.ymmh_space)


def _process(task: ImageTask, core: Any, command_line: tuple[str, ...]) -> bytes:
    owner = core.thread_core.creds
    name = os.fsencode(core.tc.comm)
    arguments = os.fsencode(" ".join(command_line)) or name
    # The last byte of both stays zero.
    return _PROCESS.pack(
        0,
        b"R",
        0,
        0,
        0,
        owner.uid,
        owner.gid,
        task.pid,
        task.parent,
        task.group,
        task.session,
        name[:15],
        arguments[:79],
    )


def _files(areas: Iterable[Area]) -> bytes:
    mapped = [area for area in areas if area.kind in _MAPPED and area.path and area.shared is None]
    places = b"".join(struct.pack("<QQQ", area.start, area.end, area.offset // PAGE_BYTES) for area in mapped)
    names = b"".join(os.fsencode(area.path) + b"\0" for area in mapped)
    return struct.pack("<QQ", len(mapped), PAGE_BYTES) + places + names


def _exactly(words: Iterable[int], count: int) -> list[int]:
    found = list(words)[:count]
    return found + [0] * (count - len(found))
