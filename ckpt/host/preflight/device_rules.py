"""Rules over open devices.

Rule: CRIU knows the memory devices, terminals, tun (in a network namespace of its own) and autofs. Any other one is for
a plug-in of CRIU, if there is one.
Source: criu/files.c, dump_chrdev(); criu/tty.c, get_tty_driver(); criu/plugin.c, cr_plugin_init(); plugins/cuda and
plugins/amdgpu of CRIU. The GPU rules were never tried: they follow these sources.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.holdings import Hold
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.held_descriptors import MEMORY_DEVICES, Held, descriptors, mapped
from ckpt.host.preflight.rule import Found, Rule, When
from ckpt.model.findings import Severity
from ckpt.model.inodes import RoleKind

_MISCELLANEOUS: Final = 10
_TUN, _AUTOFS = 200, 235
_TERMINALS: Final = frozenset((4, 188, 204, *range(128, 144)))
_TERMINAL_NAMES: Final = frozenset(((5, 0), (5, 1), (5, 2)))

_NO_DEVICES: Final = ("/SYSV", "/secretmem")
"""Special maps that memory_rules.py tells of."""

_PLUGINS: Final = "/usr/lib/criu"
_PLUGINS_VARIABLE: Final = "CRIU_LIBS_DIR"
_NVIDIA, _AMD = ("/dev/nvidia",), ("/dev/kfd", "/dev/dri/")
_CUDA_PLUGIN, _CUDA_TOOL, _AMD_PLUGIN = "cuda_plugin.so", "cuda-checkpoint", "amdgpu_plugin.so"


def _characters(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(_unknown):
        if not hold.target.startswith((*_NVIDIA, *_AMD)):
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, a device, which CRIU cannot dump",
            )


def _tun(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(descriptors).characters:
        if _number(hold) == (_MISCELLANEOUS, _TUN) and task.namespaces["net"] == facts.own_namespaces["net"]:
            yield Found(
                pid=task.pid,
                subject=subject(hold),
                message=f"{named(task, hold)}, a tunnel in the host's network namespace",
            )


def _blocks(facts: Facts) -> Iterator[Found]:
    for task, hold in facts.once(descriptors).blocks:
        yield Found(
            pid=task.pid,
            subject=subject(hold),
            message=f"{named(task, hold)}, a disk, which CRIU cannot dump",
        )


def _mapped_devices(facts: Facts) -> Iterator[Found]:
    for task in facts.tasks:
        for path in facts.holdings(task).special_maps:
            if path.startswith("/") and not path.startswith((*_NO_DEVICES, *_NVIDIA, *_AMD)):
                yield _of_map(task, path)
    for task, hold in mapped(facts):
        if stat.S_ISBLK(hold.status.st_mode):
            yield _of_map(task, hold.target)


def _of_map(task: ProcessFacts, path: str) -> Found:
    path = path.removesuffix(" (deleted)")
    return Found(
        pid=task.pid, subject=path, message=f"{task.label} maps {path}, a device, which CRIU cannot dump"
    )


def _nvidia(facts: Facts) -> Iterator[Found]:
    for task, hold in _gpu(facts, _NVIDIA):
        missing = [] if _has_plugin(_CUDA_PLUGIN) else [_CUDA_PLUGIN]
        missing += [] if shutil.which(_CUDA_TOOL) else [_CUDA_TOOL]
        yield _gpu_found(task, hold, missing)


def _amd(facts: Facts) -> Iterator[Found]:
    for task, hold in _gpu(facts, _AMD):
        yield _gpu_found(task, hold, [] if _has_plugin(_AMD_PLUGIN) else [_AMD_PLUGIN])


def _gpu(facts: Facts, names: tuple[str, ...]) -> Iterator[Held]:
    for task, hold in (*facts.once(_unknown), *mapped(facts)):
        if hold.target.startswith(names):
            yield task, hold


def _gpu_found(task: ProcessFacts, hold: Hold, missing: list[str]) -> Found:
    path = hold.target.removesuffix(" (deleted)")
    uses = f"{task.label} uses the GPU by {path}"
    where = path if hold.kind is RoleKind.MAP else subject(hold)
    if missing:
        return Found(
            pid=task.pid,
            subject=where,
            message=f"{uses}, and CRIU's help for it is not here: {', '.join(missing)}",
            remedy=f"Install {' and '.join(missing)} (plug-ins of CRIU in {_PLUGINS}).",
        )
    return Found(
        pid=task.pid,
        subject=where,
        severity=Severity.INFO,
        message=f"{uses}, which a plug-in of CRIU saves",
        remedy="The same kind of GPU and driver must be where it is restored.",
    )


def _unknown(facts: Facts) -> tuple[Held, ...]:
    """Descriptors of devices that only a plug-in could dump."""
    return tuple(held for held in facts.once(descriptors).characters if not _is_known(held[1]))


def _is_known(hold: Hold) -> bool:
    major, minor = _number(hold)
    return (
        major == MEMORY_DEVICES
        or major in _TERMINALS
        or (major, minor) in _TERMINAL_NAMES
        or (major == _MISCELLANEOUS and minor in {_TUN, _AUTOFS})
    )


def _number(hold: Hold) -> tuple[int, int]:
    return os.major(hold.status.st_rdev), os.minor(hold.status.st_rdev)


def _has_plugin(name: str) -> bool:
    return os.path.exists(os.path.join(os.environ.get(_PLUGINS_VARIABLE) or _PLUGINS, name))


RULES: Final = (
    Rule(
        name="device",
        severity=Severity.BLOCKER,
        title="A character device that is neither memory (/dev/null …) nor a terminal.",
        effect="The dump fails, and the workload runs on.",
        remedy="Let it close the device before the dump.",
        source="criu/files.c (dump_chrdev); seen with /dev/fuse, /dev/kvm, /dev/hwrng, /dev/vcs1",
        find=_characters,
        when=When.ALWAYS,
    ),
    Rule(
        name="tun",
        severity=Severity.BLOCKER,
        title="/dev/net/tun in the host's network namespace.",
        effect="The dump fails, and the workload runs on.",
        remedy="Start the workload in a network namespace of its own (unshare --net).",
        source="criu/tun.c; seen",
        find=_tun,
        when=When.ALWAYS,
    ),
    Rule(
        name="disk",
        severity=Severity.BLOCKER,
        title="A block device.",
        effect="The dump fails, and the workload runs on.",
        remedy="Let it close the device before the dump, or use a file in its place.",
        source="criu/files.c (dump_one_file); seen",
        find=_blocks,
        when=When.ALWAYS,
    ),
    Rule(
        name="mapped-device",
        severity=Severity.BLOCKER,
        title="Memory of a device that is mapped; /dev/zero is memory like any other.",
        effect="The dump fails, and the workload runs on.",
        remedy="Let it unmap the device before the dump.",
        source="criu/proc_parse.c (handle_vma); seen with a loop device. A character device was not provoked: none here "
        "can be mapped",
        find=_mapped_devices,
        when=When.ALWAYS,
    ),
    Rule(
        name="gpu-nvidia",
        severity=Severity.BLOCKER,
        title="A GPU of NVIDIA: CRIU's plug-in for CUDA and the tool cuda-checkpoint are needed.",
        effect="The dump fails, and the workload runs on.",
        remedy="Install CRIU's plug-in for it.",
        source="plugins/cuda of CRIU; never tried",
        find=_nvidia,
        when=When.ALWAYS,
    ),
    Rule(
        name="gpu-amd",
        severity=Severity.BLOCKER,
        title="A GPU of AMD (/dev/kfd, /dev/dri): CRIU's plug-in for it is needed.",
        effect="The dump fails, and the workload runs on.",
        remedy="Install CRIU's plug-in for it.",
        source="plugins/amdgpu of CRIU; never tried",
        find=_amd,
        when=When.ALWAYS,
    ),
)
