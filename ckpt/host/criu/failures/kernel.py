"""What CRIU, the kernel or the processor cannot do."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import NEWER, Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"Unexpected rt vDSO area bounds",
        "this CRIU is too old for the running kernel (it does not know the layout of its vDSO)",
        NEWER,
    ),
    row(
        r"Can't get 1:16 opt: Operation not supported",
        "this CRIU is too old for the running kernel (it asks inet sockets for an option that is gone)",
        NEWER,
    ),
    row(
        r"Can't get rlimit \d+: Operation not permitted",
        "a task belongs to another user, and CAP_SYS_RESOURCE, which that needs, is missing here",
        "Give ckpt the capability CAP_SYS_RESOURCE, or run the workload as root.",
    ),
    row(
        r"Tracking memory is not available|BUG at criu/mem\.c:46",
        "the kernel has no soft-dirty memory tracking (CONFIG_MEM_SOFT_DIRTY), which pre-dumps need",
        "Dump without pre-copy.",
    ),
    row(
        r"has rseq but kernel lacks get_rseq_conf",
        "the kernel does not tell the restartable sequences (rseq) of a task",
        "Use a kernel of 5.13 or newer, or start the program with GLIBC_TUNABLES=glibc.pthread.rseq=0.",
    ),
    row(
        r"Can't dump high memory region (?P<range>\S+) of task (?P<pid>\d+)",
        "task {pid} has memory at {range}, too high for this kernel to map again",
        "Use a newer kernel.",
    ),
    row(
        r"Can't restore high memory region (?P<range>\S+)",
        "the checkpoint has memory at {range}, which this host's processor or kernel does not have",
        "Restore it on a host with 5-level page tables (the CPU flag la57).",
    ),
    row(
        r"CPU (?:instruction )?capabilities do not match run time|FPU feature required by image|CPU xfeatures has unsupported bits|CPU xsave (?:max )?size mismatch",
        "the processor of this host lacks features that the workload was dumped with",
        "Restore it on a host whose processor has them: 'ckpt check REF' names each.",
    ),
    row(
        r"Core march mismatch",
        "the checkpoint was taken on another processor architecture",
        "Restore it on a host of the same architecture.",
    ),
    row(
        r"POKEDATA failed|Can't create memfd in victim",
        "CRIU could not put its code into a task, most likely because its cgroup is at its memory limit",
        "Raise memory.max of the workload's cgroup by a MiB or more, and try again.",
    ),
    row(
        r"suspending seccomp failed|Can't fetch filter on tid_real",
        "the seccomp filter of a task cannot be read or suspended",
        "Run ckpt as root with CAP_SYS_ADMIN, and outside of any seccomp filter: a container's default one is too much.",
    ),
    row(
        r"CRIU was built without libnftables",
        "this CRIU was built without nftables",
        "Run scripts/setup, which puts one with it beside the system's.",
    ),
    row(
        r"Failed in init\(\d+\) of \x22(?P<plugin>[^\x22]*)\x22",
        "CRIU's plugin {plugin} could not begin its work",
        "See whether its device and driver are there; without such a device, remove the plugin from CRIU's library directory.",
    ),
)
