"""The host's clocks, as a process in ckpt's own time namespace reads them.

Rule: the three clocks are one instant: they are read back to back, and the tightest of a few tries counts.
Source: clock_gettime(2); proc_sys_kernel(5), random/boot_id.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cached_property
from typing import Final

from ckpt.model.clocks import Clocks
from ckpt.units import Nanoseconds

_TRIES: Final = 5
_ZONES: Final = "/zoneinfo/"


class HostClock:
    """Fits the port `Clock`."""

    def read(self) -> Clocks:
        """All three clocks at one instant (a few hundred nanoseconds), with what identifies them."""
        tightest: tuple[int, int, int, int] | None = None
        for _ in range(_TRIES):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
            boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            if tightest is None or after - before < tightest[0]:
                tightest = (after - before, realtime, (before + after) // 2, boottime)
        assert tightest
        _, realtime, monotonic, boottime = tightest
        boot_id, zone, source = self._identity
        return Clocks(
            realtime_ns=Nanoseconds(realtime),
            monotonic_ns=Nanoseconds(monotonic),
            boottime_ns=Nanoseconds(boottime),
            boot_id=boot_id,
            time_zone=zone,
            clocksource=source,
        )

    def realtime(self) -> Nanoseconds:
        """CLOCK_REALTIME now."""
        return Nanoseconds(time.clock_gettime_ns(time.CLOCK_REALTIME))

    def stopwatch(self) -> Nanoseconds:
        """A clock that only ever goes forward, for durations."""
        return Nanoseconds(time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    @cached_property
    def _identity(self) -> tuple[str, str, str]:
        return (
            _line("/proc/sys/kernel/random/boot_id"),
            _time_zone(),
            _line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        )


def _time_zone() -> str:
    """The host's zone as in "Europe/Berlin"; "" where it names none."""
    with suppress(OSError):
        place = os.path.realpath("/etc/localtime", strict=True)
        if _ZONES in place:
            return place.partition(_ZONES)[2]
    return _line("/etc/timezone")


def _line(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
        return stream.readline().strip()
    return ""
