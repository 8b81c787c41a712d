"""Namespaces, mounts, cgroups and security modules."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import REFUSED, Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"SysVIPC shmem map \S+ doesn't live in IPC ns",
        "it uses System V shared memory of the host's IPC namespace",
        "Start it in an IPC namespace of its own ('ckpt run' does).",
    ),
    row(
        r"Can't dump nested (?P<kind>pid|user|ipc|uts|cgroup|time) namespace",
        "a process of the workload made a {kind} namespace of its own (a sandbox)",
        "Stop that process, or run the program without its sandbox.",
    ),
    row(
        r"Can't restore sub-task in NS",
        "a process below the root one lives in a mount or network namespace of its own",
        REFUSED,
    ),
    row(
        r"BUG at criu/mount\.c:48|--root option is required|--root option required",
        "the workload has a mount namespace of its own, and the restore was given no root for it",
        "Restore with a root that is a private mount point ('ckpt restore' makes one).",
    ),
    row(
        r"Unable to open the proc file system.*(?:Operation not permitted|EPERM)",
        "the workload lives in a user namespace without PID and mount namespaces of its own",
        "Run it in user, PID and mount namespaces together, or in none.",
    ),
    row(
        r"can't dump unprivileged task whose /proc doesn't belong to it",
        "the workload lives in user and PID namespaces, with the host's /proc",
        "Mount a /proc of its own inside its mount namespace.",
    ),
    row(
        r"Can't dump a pid namespace without the process init|Can't restore pid namespace without the process init",
        "the first process of the workload's PID namespace does not belong to the workload",
        "Dump from the first process of that namespace on.",
    ),
    row(
        r"namespaces doesn't belong to the target user namespace",
        "a namespace of the workload was made before its user namespace",
        "Make the user namespace first, or together with the others.",
    ),
    row(
        r"Unable to write into (?P<path>\S*[ug]id_map)",
        "the ids of the workload's user namespace cannot be mapped here ({path})",
        "Run ckpt as root, outside of other user namespaces.",
    ),
    row(
        r"Can't access join-ns file (?P<path>.+?): (?P<reason>.+)",
        "the namespace {path}, which the restore shall join, cannot be opened: {reason}",
        "Make it again, and restore once more.",
    ),
    row(
        r"Unable to create a new time namespace|Unable to set a (?:monotonic|boottime) clock offset",
        "the time namespace of the workload cannot be made here",
        "Use a kernel with CONFIG_TIME_NS, or restore with --time host.",
    ),
    row(
        r"Failed to restore (?P<kind>shm|sem|msg) id \((?P<found>\d+) instead of (?P<id>\d+)\)|Failed to set desired IPC (?P<other>shm|sem|msg) ID",
        "the System V object that the workload had ({kind}{other} {id}) cannot have its number here",
        "Restore a job that was started with 'ckpt run': it has an IPC namespace of its own.",
    ),
    row(
        r"Mount \d+ (?P<path>\S+) \(master_id: .* has unreachable sharing",
        "the mount {path} gets its mounts from one outside the workload's mount namespace",
        "Cut it off inside the namespace: mount --make-rprivate {path}",
    ),
    row(
        r"Mount \d+:(?P<path>\S+) is autodetected external mount",
        "the mount {path} comes from outside the workload's mount namespace",
        "Start it with 'ckpt run', whose mounts are known, or unmount that one.",
    ),
    row(
        r"FS mnt (?P<path>\S+) dev \S+ root \S+ unsupported",
        "the mount {path} is of a file system that CRIU does not know",
        "Unmount it before the dump, or let the workload use the host's mount.",
    ),
    row(
        r"(?P<path>\S+) is a fuse mount but not external",
        "{path} is a FUSE file system, whose content only its server knows",
        "Unmount it before the dump, or let the workload use the host's mount.",
    ),
    row(
        r"No mapping for \d+:(?P<path>\S+) mountpoint",
        "the mount {path}, which is not part of the checkpoint, was not given to the restore",
        "Restore it with 'ckpt restore', which gives what it recorded; it must be mounted here.",
    ),
    row(
        r"Unable to dump a file system for \d+:(?P<path>\S+)|failed to dump fs (?P<other>\S+)",
        "the content of the file system mounted at {path}{other} cannot be saved",
        "Unmount it before the dump, or let the workload use the host's mount.",
    ),
    row(
        r"The mount (?P<mount>\d+) is overmounted so paths are invisible",
        "a file that it has open lies below another mount (over mount {mount})",
        "Unmount what lies above it, or close the file.",
    ),
    row(
        r"\d+:(?P<path>\S+) doesn't have a proper root mount",
        "{path} is a bind mount of a part of a file system that is nowhere mounted whole",
        "Mount that file system whole inside the namespace, or unmount {path}.",
    ),
    row(
        r"A few mount points can't be mounted|Unable to mount (?P<source>\S+) (?P<path>\S+) \(id=",
        "the mounts of the workload cannot be made again here ({source} {path})",
        "Mount what they come from: 'ckpt show REF' lists them.",
    ),
    row(
        r"root task has another root than mntns",
        "the root process has changed its root directory (chroot) inside a mount namespace of its own",
        "Start it with pivot_root instead of chroot.",
    ),
    row(
        r"Can't move (?:\d+ )?into (?P<path>\S+) .*: (?P<reason>[^:]+)$",
        "a task cannot be moved into the cgroup {path}: {reason}",
        "A cgroup of version 2 with controllers for those below it holds no tasks: clear its cgroup.subtree_control, or restore with --cgroup.",
    ),
    row(
        r"Can't make cgroup dir (?P<path>.+?): (?P<reason>.+)",
        "the cgroup {path} cannot be made: {reason}",
        "Mount the cgroup file system writable, or restore with --cgroup.",
    ),
    row(
        r"Cgroup dir (?P<path>.+?) doesn't exist",
        "the cgroup {path} does not exist here",
        "Make it, or restore with --cgroup.",
    ),
    row(
        r"cg: Failed writing (?P<value>.+?) to (?P<path>.+?): (?P<reason>.+)",
        "the setting {path} of a cgroup cannot be {value}: {reason}",
        "Compare the controllers and limits of this host with those of the dump's, or restore with --cgroup.",
    ),
    row(
        r"Unable to mount the cgroup \((?P<name>[^)]*)\) file system|cg: controller (?P<other>\S+) not found",
        "this host lacks the cgroup controller {name}{other}",
        "Boot with it (it may be off or in the other cgroup version), or restore with --cgroup.",
    ),
    row(
        r"invalid cgroup configuration, (?P<path>\S+) is not a suffix|cg (?P<other>\S+) shorter than path prefix",
        "a process has a cgroup namespace that begins elsewhere than that of the root process ({path}{other})",
        "Start it without cgroup namespaces inside it.",
    ),
    row(
        r"(?P<name>apparmor|selinux) LSM specified but",
        "the workload has a profile of {name}, which this host's kernel does not have",
        "Restore it on a host with {name}, or start it without a profile.",
    ),
    row(
        r"can't write lsm profile|write AA policy|couldn't write policy for|socket SELinux context",
        "the profile (AppArmor) or label (SELinux) of a task cannot be set here",
        "Load the same profile, or allow ckpt this change ('dmesg' and the audit log name what was denied).",
    ),
    row(
        r"Invalid selinux context|getting selinux profile failed|failed to collect AA namespace",
        "the label (SELinux) or profile (AppArmor) of a task cannot be read",
        "Run ckpt where this is allowed: 'dmesg' and the audit log name what was denied.",
    ),
)
