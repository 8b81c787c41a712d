"""Rules over descriptors of kernel objects without a file, and areas of memory that are made of them.

Source: criu/files.c, dump_one_file(): what is not named there is refused; criu/proc_parse.c, handle_vma().
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.held_descriptors import DMA_BUFFER, descriptors, mapped
from ckpt.host.preflight.rule import Find, Found, Rule, When
from ckpt.model.findings import Severity

_DUMPABLE: Final = frozenset(("eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd"))
_SOURCE: Final = "criu/files.c (dump_one_file), criu/files-ext.c; seen"
_FAILS: Final = "The dump fails, and the workload runs on."


def _find(*kinds: str) -> Find:
    """Objects whose name begins with one of these; with none given, those of no other rule that CRIU does not know."""

    def find(facts: Facts) -> Iterator[Found]:
        for task, hold in facts.once(descriptors).anonymous:
            name = _name(hold.target)
            if name.startswith(kinds) if kinds else name not in _DUMPABLE and not name.startswith(_NAMED):
                yield Found(
                    pid=task.pid,
                    subject=subject(hold),
                    message=f"{named(task, hold)}, which CRIU cannot dump",
                )
        for task, path in facts.once(_maps):
            name = _name(path)
            if name.startswith(kinds) if kinds else not name.startswith(_NAMED):
                yield Found(
                    pid=task.pid,
                    subject=path,
                    message=f"{task.label} maps {path}, which CRIU cannot dump",
                )

    return find


def _maps(facts: Facts) -> tuple[tuple[ProcessFacts, str], ...]:
    """The areas that are made of such objects."""
    anonymous = (
        (task, path)
        for task in facts.tasks
        for path in facts.holdings(task).special_maps
        if path.startswith("anon_inode:")
    )
    buffers = ((task, hold.target) for task, hold in mapped(facts) if hold.target.startswith(DMA_BUFFER))
    return (*anonymous, *buffers)


def _name(target: str) -> str:
    if target.startswith(DMA_BUFFER):
        return target.removeprefix("/")
    return target.partition(":")[2].strip("[]")


def _rule(name: str, kinds: tuple[str, ...], title: str, remedy: str, source: str = _SOURCE) -> Rule:
    return Rule(
        name=name,
        severity=Severity.BLOCKER,
        title=title,
        effect=_FAILS,
        remedy=remedy,
        source=source,
        find=_find(*kinds),
        when=When.ALWAYS,
    )


_KINDS: Final = (
    (
        "io-uring",
        ("io_uring",),
        "A ring of io_uring(7), open or only mapped.",
        (
            "Run it without io_uring (for libuv UV_USE_IO_URING=0, or where that does not help sysctl "
            "kernel.io_uring_disabled=2)."
        ),
    ),
    (
        "userfaultfd",
        ("userfaultfd",),
        "A descriptor of userfaultfd(2).",
        "Let it close the descriptor; what handles page faults of its own cannot be moved.",
    ),
    (
        "perf-event",
        ("perf_event",),
        "A counter of perf_event_open(2).",
        "Stop the measurement: let the profiler end, or detach.",
    ),
    (
        "bpf",
        ("bpf", "btf"),
        "A BPF program, map or link.",
        "Let the program that loads it end, and pin what must stay in /sys/fs/bpf.",
    ),
    (
        "landlock-ruleset",
        ("landlock-ruleset",),
        "A ruleset of landlock(7) that is still open.",
        "Let it close the ruleset after landlock_restrict_self(2): it is not needed any more.",
    ),
    (
        "seccomp-listener",
        ("seccomp notify",),
        "A listener of seccomp_unotify(2): a supervisor of system calls in the workload.",
        "Dump without the supervisor, or let it close its listener.",
    ),
    (
        "virtual-machine",
        ("kvm-",),
        "A virtual machine of KVM.",
        "Save the machine by its own means (QEMU: migrate or savevm).",
    ),
)
_BUFFERS: Final = ("dmabuf:", "sync_file", "syncobj_file", "drm", "i915", "iommufd", "vfio")
_NAMED: Final = (*_BUFFERS, *(kind for _, kinds, _, _ in _KINDS for kind in kinds))

RULES: Final = (
    *(_rule(*kind) for kind in _KINDS),
    _rule(
        "kernel-buffer",
        _BUFFERS,
        "A buffer or a fence of a device (DMA-BUF, sync_file, VFIO).",
        "Let it release the device before the dump.",
        "criu/files.c (dump_one_file); the kernel's drivers/dma-buf. Not provoked: needs a kernel with such a device",
    ),
    _rule(
        "anonymous-inode",
        (),
        "Any other kernel object that CRIU does not know.",
        "Let it be closed before the dump.",
    ),
)
