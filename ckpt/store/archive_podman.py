"""A checkpoint in the layout of `podman container checkpoint --export`, for the tools that read that.

    spec.dump       the OCI runtime's configuration: process, mounts, namespaces, annotations
    config.dump     the container's id, name and times
    network.status  {}: ckpt gives workloads no networks
    stats-dump      CRIU's figures of the dump, where they are known
    checkpoint/     the image files

Rules: a container is one process tree. Nothing is invented: what a checkpoint does not know (an image, a root
file system) is left out, and so no container engine restores this; checkpointctl, crit and criu read it.
Source: libpod/container_internal_common.go (exportCheckpoint), checkpointctl/lib/metadata.go; the OCI runtime
specification, config.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ckpt.errors import Usage
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.inodes import RoleKind
from ckpt.store import tarball
from ckpt.store.archive import ArchiveSource
from ckpt.store.compress_stream import CompressedWriter
from ckpt.units import SECOND, CheckpointId

_NAMESPACES: Final = {
    "cgroup": "cgroup",
    "ipc": "ipc",
    "mnt": "mount",
    "net": "network",
    "pid": "pid",
    "time": "time",
    "user": "user",
    "uts": "uts",
}
"""From the names in /proc/PID/ns to those of the OCI runtime specification."""

_NEVER: Final = "0001-01-01T00:00:00Z"


def export_podman(
    source: ArchiveSource,
    checkpoint: CheckpointId,
    write: Callable[[bytes], object],
    *,
    statistics: bytes | None,
    rewritten: Mapping[str, bytes],
) -> None:
    """Write the checkpoint to `write`, which takes all of what it is given.

    Args:
        source: The store.
        checkpoint: What is exported.
        write: Takes all of what it is given.
        statistics: CRIU's stats-dump, if it is known.
        rewritten: By name the image files that go out in another form than they are kept in.

    Raises:
        Usage: it has several trees.
        ObjectMissing, ObjectCorrupt: the checkpoint is not whole.
    """
    stored = source.load(checkpoint).checkpoint
    if len(stored.image_sets) != 1:
        raise Usage(
            problem=f"The checkpoint {checkpoint[:12]} has {len(stored.image_sets)} process trees,"
            " and an archive of podman's has one.",
            remedy="Export it with --format tar or --format criu.",
        )
    documents = {
        "spec.dump": _json(_spec(checkpoint, stored)),
        "config.dump": _json(_config(checkpoint, stored)),
        "network.status": _json({}),
    }
    if statistics is not None:
        documents["stats-dump"] = statistics
    mtime = stored.created_ns // SECOND
    with CompressedWriter(write) as stream:

        def put(name: str, size: int, content: Iterable[bytes]) -> None:
            stream.write(tarball.header(name, size, mtime))
            for piece in content:
                stream.write(piece)
            stream.write(tarball.padding(size))

        for name, content in documents.items():
            put(name, len(content), [content])
        stream.write(tarball.header("checkpoint/", 0, mtime, directory=True))
        for file in stored.image_sets[0].files:
            name = f"checkpoint/{file.name}"
            if file.name in rewritten:
                put(name, len(rewritten[file.name]), [rewritten[file.name]])
            else:
                put(name, file.size_bytes, source.stream(checkpoint, file))
        stream.write(tarball.END)


def _config(checkpoint: CheckpointId, stored: Checkpoint) -> dict[str, Any]:
    frozen = datetime.fromtimestamp(stored.created_ns // SECOND, UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": checkpoint,
        "name": stored.job or f"pid-{stored.image_sets[0].root}",
        "runtime": "ckpt",
        "createdTime": frozen,
        "checkpointedTime": frozen,
        "restoredTime": _NEVER,
        "restored": False,
    }


def _spec(checkpoint: CheckpointId, stored: Checkpoint) -> dict[str, Any]:
    tree = stored.workload.trees[0]
    root = tree.processes[0]
    directories = [
        inode.path
        for inode in stored.inodes
        if any(role.pid == root.pid and role.kind is RoleKind.CWD for role in inode.roles)
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": root.uid, "gid": root.gid},
            "args": list(root.command_line) or [root.name],
            "cwd": directories[0] if directories else "/",
        },
        "root": {"path": "/"},
        "hostname": stored.host.hostname,
        "mounts": [
            {"destination": mount.mountpoint, "type": mount.filesystem, "source": mount.source}
            for mount in stored.workload.external_mounts
        ],
        "annotations": {
            # checkpointctl asks this for the engine whose files these are.
            "io.container.manager": "libpod",
            "ckpt.checkpoint": checkpoint,
            **({"ckpt.message": stored.message} if stored.message else {}),
        },
        "linux": {
            "namespaces": [
                {"type": _NAMESPACES[namespace.kind]}
                for namespace in tree.namespaces
                if namespace.own and namespace.kind in _NAMESPACES
            ]
        },
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
