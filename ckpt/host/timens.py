"""Time namespaces with given clocks, for what is restored.

CRIU makes a time namespace of its own for each tree, from clocks that it sampled at the end of the tree's dump:
trees of one checkpoint come back on different clocks. So a namespace is made here, its offsets computed once
from the freeze's instant, and CRIU joins every tree to it (join_ns, after its own; criu/cr-restore.c).

Rules: an offset is relative to the initial time namespace, whatever namespace ckpt itself runs in. A
namespace lives as long as something refers to it: here a descriptor, later the tasks. The clocks are set for an
instant, which is a reading of the host's CLOCK_BOOTTIME: when the namespace is made does not count.
Source: time_namespaces(7): offsets can be written until the first task enters the namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from ckpt.errors import FeatureMissing
from ckpt.host.clock import HostClock
from ckpt.model.clocks import ClockTarget, TimeOffsets
from ckpt.units import SECOND, Nanoseconds

# unshare(CLONE_NEWTIME) takes effect in children; it needs a process of its own, since setns(2) back needs a
# process with one thread. It ends when its standard input does.
_HOLDER: Final = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x80):
    sys.exit(1)
with open("/proc/self/timens_offsets", "w") as offsets:
    offsets.write(sys.argv[1])
os.write(1, b"ok")
os.read(0, 1)
"""


@dataclass(frozen=True, slots=True)
class TimeNamespace:
    """A time namespace, held by a descriptor; a context manager that lets go of it."""

    fd: int

    @classmethod
    def with_clocks(cls, wanted: ClockTarget, at_ns: Nanoseconds) -> Self:
        """A namespace in which the clocks read `wanted` when this process reads CLOCK_BOOTTIME as `at_ns`.

        Before that instant they read less, but never less than zero.

        Raises:
            FeatureMissing: the kernel has no time namespaces, or we may not make one.
        """
        own = offsets_of("self")
        now = HostClock().read()
        at_monotonic_ns = at_ns - (now.boottime_ns - now.monotonic_ns)
        offsets = (
            # The kernel refuses a clock that would begin before zero.
            (
                "monotonic",
                own.monotonic_ns + max(wanted.monotonic_ns - at_monotonic_ns, -now.monotonic_ns),
            ),
            ("boottime", own.boottime_ns + max(wanted.boottime_ns - at_ns, -now.boottime_ns)),
        )
        text = "".join(f"{clock} {offset // SECOND} {offset % SECOND}\n" for clock, offset in offsets)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HOLDER, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as holder:
            assert holder.stdin
            assert holder.stdout
            if holder.stdout.read(2) != b"ok":
                raise FeatureMissing(
                    feature="time namespaces, or the right to make one",
                    remedy="Use a kernel with CONFIG_TIME_NS and run as root, or restore with --time host.",
                )
            fd = os.open(f"/proc/{holder.pid}/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
            holder.stdin.close()
        return cls(fd)

    @classmethod
    def of_this_process(cls) -> Self:
        """The namespace that this process lives in: the host's clocks, as we see them.

        Raises:
            FeatureMissing: the kernel has no time namespaces.
        """
        try:
            return cls(os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            raise FeatureMissing(feature="time namespaces", remedy="Use a newer kernel.") from None

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def offsets_of(process: str) -> TimeOffsets:
    """What the time namespace of a process (its pid, or "self") adds to the initial one's clocks.

    Zero where the process has ended or the kernel knows no time namespaces.
    """
    try:
        with open(f"/proc/{process}/timens_offsets", encoding="ascii") as stream:
            rows = {fields[0]: fields[1:] for fields in map(str.split, stream)}
    except (FileNotFoundError, ProcessLookupError):
        return TimeOffsets()
    # Before 5.11 the clocks were given by their numbers.
    monotonic = rows.get("monotonic") or rows["1"]
    boottime = rows.get("boottime") or rows["7"]
    return TimeOffsets(monotonic_ns=_nanoseconds(monotonic), boottime_ns=_nanoseconds(boottime))


def _nanoseconds(fields: list[str]) -> Nanoseconds:
    seconds, nanoseconds = map(int, fields)
    return Nanoseconds(seconds * SECOND + nanoseconds)
