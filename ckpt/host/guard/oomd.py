"""The pre-kill hook of systemd-oomd: which cgroup it is about to kill.

systemd-oomd (version 260 and newer, with PrekillHookTimeoutSec= in oomd.conf) calls Notify at every socket in
HOOK_DIRECTORY before it kills a cgroup, and kills when all have answered or the time is over. An error is logged
and changes nothing: the hook cannot refuse the kill, but what it has brought away is no longer there to be killed.

Rule: a path is taken only if it is the plain path of a cgroup of version 2 below the root.
Source: systemd, src/shared/varlink-io.systemd.oom.Prekill.c, src/oom/oomd-util.c "oomd_prekill_hook",
units/systemd-oomd.service.in ("User=systemd-oom"), oomd.conf(5) "Prekill event"; varlink.org, "Service Interface".
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ckpt import VERSION
from ckpt.host import cgroups
from ckpt.host.guard.varlink import VarlinkAnswer, VarlinkCall
from ckpt.host.guard.varlink_server import Work

HOOK_DIRECTORY: Final = "/run/systemd/oomd.prekill.hook"
OOMD_USER: Final = "systemd-oom"
CHECKPOINT_FAILED: Final = "ckpt.guard.CheckpointFailed"
"""The name of the error that says: some of what is in the cgroup was not brought away."""

_PREKILL: Final = "io.systemd.oom.Prekill"
_SERVICE: Final = "org.varlink.service"
_PATH_BYTES_MAX: Final = 4096

_DESCRIPTIONS: Final = {
    _PREKILL: """\
# Notifications of systemd-oomd before it kills a cgroup
interface io.systemd.oom.Prekill

# The cgroup, by its path below the mount, is about to be killed
method Notify(cgroup: string) -> ()
""",
    _SERVICE: """\
# What every varlink service answers
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound(interface: string)
error MethodNotFound(method: string)
error MethodNotImplemented(method: string)
error InvalidParameter(parameter: string)
error PermissionDenied()
error ExpectedMore()
""",
}


class PrekillHook:
    """The service at the socket. Fits `varlink_server.Service`."""

    def __init__(self, relieve: Callable[[str], VarlinkAnswer]) -> None:
        """Answer for a cgroup, by the path of its directory, what `relieve` does in a process of its own."""
        self._relieve = relieve
        # Looked up once: under memory pressure the lookup may not come back.
        self._users = _users()

    @property
    def users(self) -> frozenset[int]:
        """Root, and the user that systemd-oomd runs as."""
        return self._users

    def begin(self, call: VarlinkCall) -> VarlinkAnswer | Work:
        """The answer about the service, or the work of a notification."""
        match call.method:
            case "org.varlink.service.GetInfo":
                return VarlinkAnswer(
                    parameters={
                        "vendor": "ckpt",
                        "product": "ckpt guard-hook",
                        "version": VERSION,
                        "url": "",
                        "interfaces": sorted(_DESCRIPTIONS),
                    }
                )
            case "org.varlink.service.GetInterfaceDescription":
                name = call.text("interface")
                if name is None:
                    return _refused("InvalidParameter", "parameter", "interface")
                if name not in _DESCRIPTIONS:
                    return _refused("InterfaceNotFound", "interface", name)
                return VarlinkAnswer(parameters={"description": _DESCRIPTIONS[name]})
            case "io.systemd.oom.Prekill.Notify":
                directory = directory_of(call.text("cgroup"))
                if directory is None:
                    return _refused("InvalidParameter", "parameter", "cgroup")
                return lambda: self._relieve(directory)
            case method if method.rpartition(".")[0] in _DESCRIPTIONS:
                return _refused("MethodNotFound", "method", method)
            case method:
                return _refused("InterfaceNotFound", "interface", method.rpartition(".")[0])


def directory_of(path: str | None) -> str | None:
    """The directory of the cgroup that systemd-oomd calls `path`; None if there is none, or it is no such path."""
    hierarchy = cgroups.unified()
    if hierarchy is None or path is None or not path.startswith("/") or "\0" in path:
        return None
    try:
        too_long = len(path.encode()) > _PATH_BYTES_MAX
    except UnicodeEncodeError:  # a half of a surrogate pair: JSON may name it, a path of systemd never has it
        return None
    words = path[1:].split("/")
    if too_long or any(word in {"", ".", ".."} for word in words):
        return None
    directory = hierarchy.mountpoint + path
    # A directory in the mount, but another file system mounted over it, is no cgroup of ours to act on.
    if os.path.realpath(directory) != directory or not os.path.exists(f"{directory}/cgroup.procs"):
        return None
    return directory


def _refused(error: str, parameter: str, value: str) -> VarlinkAnswer:
    return VarlinkAnswer(error=f"{_SERVICE}.{error}", parameters={parameter: value})


def _users() -> frozenset[int]:
    found = {0}
    with suppress(KeyError):
        found.add(pwd.getpwnam(OOMD_USER).pw_uid)
    return frozenset(found)
