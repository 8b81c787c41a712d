"""Where a process's glibc makes the calls of the stat family.

A place is taken only if its bytes are exactly `mov $number,%eax`, perhaps `mov %rdx,%rsi`, `syscall`, and the
comparison of the result with the first error number and its jump, as every wrapper of libc has them: 14 bytes or
more in a row are no accident. One that looks otherwise is left out; nothing is lost but speed.
Rules:
- Only the five bytes of the `mov` are replaced. No jump leads into them, they are one instruction; and a thread
  that is about to make the call, or to make it again, finds the `syscall` where it was.
- A byte 40 to 4f before the `mov` may be a prefix, which makes it load another register: such a place is left out.
- Of the process's memory, not of the file: it may be patched already, by us or by somebody else.
Source: the Intel SDM, volume 2; glibc's sysdeps/unix/sysv/linux/x86_64/sysdep.h, INTERNAL_SYSCALL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckpt.host.virtual.mappings import Mapping
from ckpt.host.virtual.stub import BLOCKS, JUMP_BYTES, MOVED, PAGE, Site, Stub, decode_stub

SONAMES: Final = frozenset(("libc.so.6", "ld-linux-x86-64.so.2"))
"""The libraries that are looked through: glibc's only; musl calls itself otherwise."""

_TEXT_BYTES_MAX: Final = 64 * 1024 * 1024
_SYSCALL: Final = b"\x0f\x05"
_CHECKED: Final = re.compile(
    rb"\x48?\x3d[\x00\x01]\xf0\xff\xff"  # cmp $-4096 or $-4095, with %eax or %rax
    rb"(?:[\x77\x73]|\x0f[\x87\x83])"  # ja or jae
)
_LOAD_EAX, _JUMP = 0xB8, 0xE9
_PREFIXES: Final = range(0x40, 0x50)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSites:
    """What was found: sites as libc has them, those that are patched, and the stubs that these lead to."""

    intact: tuple[Site, ...]
    patched: tuple[Site, ...]
    stubs: tuple[Stub, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All of them, in the order of their addresses."""
        return tuple(sorted((*self.intact, *self.patched), key=lambda site: site.address))


def find_call_sites(texts: Sequence[Mapping], read: Callable[[int, int], bytes]) -> CallSites:
    """The sites in these texts, read from the process's memory; none in a text that cannot be read."""
    intact: list[Site] = []
    patched: list[Site] = []
    stubs: dict[int, Stub] = {}
    for text in texts:
        try:
            content = read(text.start, min(text.end - text.start, _TEXT_BYTES_MAX))
        except OSError:
            continue
        for at, has_moved in _calls(content):
            address, operand = text.start + at, content[at + 1 : at + JUMP_BYTES]
            if content[at] == _JUMP:
                target = address + JUMP_BYTES + int.from_bytes(operand, "little", signed=True)
                stub = _stub_at(target // PAGE * PAGE, read)
                if stub and (site := _site_of(stub, address, target)):
                    patched.append(site)
                    stubs[stub.address] = stub
            elif content[at] == _LOAD_EAX and content[at - 1] not in _PREFIXES:
                number = int.from_bytes(operand, "little")
                if number in BLOCKS:
                    intact.append(Site(address=address, number=number, has_moved=has_moved))
    return CallSites(intact=tuple(intact), patched=tuple(patched), stubs=tuple(stubs.values()))


def _calls(content: bytes) -> Iterator[tuple[int, bool]]:
    """Where the five bytes before each call begin, and whether MOVED stands between them and the call."""
    at = content.find(_SYSCALL)
    while at >= 0:
        if _CHECKED.match(content, at + len(_SYSCALL)):
            has_moved = content.endswith(MOVED, 0, at)
            start = at - JUMP_BYTES - (len(MOVED) if has_moved else 0)
            # A prefix may stand before them.
            if start > 0:
                yield start, has_moved
        at = content.find(_SYSCALL, at + 1)


def _site_of(stub: Stub, address: int, target: int) -> Site | None:
    """The site at this address, if the stub has a block for it there."""
    for index, site in enumerate(stub.sites):
        if site.address == address and stub.block(index) == target:
            return site
    return None


def _stub_at(address: int, read: Callable[[int, int], bytes]) -> Stub | None:
    try:
        return decode_stub(read(address, PAGE), address)
    except OSError:
        return None
