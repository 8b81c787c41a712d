"""What this host is: kernel, CPU, C library, distribution.

Source: uname(2), os-release(5), /proc/cpuinfo, confstr(3).
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import lru_cache

from ckpt.model.checkpoint import HostFacts


@lru_cache(maxsize=1)
def read_host_facts(criu_version: str, ckpt_version: str) -> HostFacts:
    """This host; what cannot be told is ""."""
    system = os.uname()
    cpu = _first_cpu()
    return HostFacts(
        hostname=system.nodename,
        kernel=system.release,
        architecture=system.machine,
        distribution=_distribution(),
        cpu_model=cpu.get("model name", ""),
        # arm64 calls them Features.
        cpu_flags=tuple((cpu.get("flags") or cpu.get("Features") or "").split()),
        libc=_libc(),
        criu_version=criu_version,
        ckpt_version=ckpt_version,
    )


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return ""


def _libc() -> str:
    with suppress(ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return ""


def _first_cpu() -> dict[str, str]:
    facts: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, colon, value = line.partition(":")
            if not colon:
                break
            facts[name.strip()] = value.strip()
    return facts
