"""What the commands answer as JSON documents.

Rules: keys are promises: none is renamed or removed. Sizes are bytes; names that end in _ms are numbers with
fractions; instants are RFC 3339 in UTC, or nanoseconds where the key ends in _ns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from ckpt.errors import CkptError
from ckpt.model.checkpoint import Checkpoint, ImageSet
from ckpt.model.findings import Finding, blockers
from ckpt.model.group import GroupDumpReport, GroupRestoreReport
from ckpt.model.reports import (
    DumpReport,
    RestoreReport,
    StoredCheckpoint,
    SweepReport,
    VerifyReport,
)
from ckpt.model.workload import Tree
from ckpt.units import CHUNK_BYTES, SECOND, Nanoseconds, milliseconds


def rfc3339(realtime: Nanoseconds) -> str:
    """The instant in UTC, to the microsecond."""
    seconds, rest = divmod(realtime, SECOND)
    instant = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def dump_document(report: DumpReport) -> dict[str, Any]:
    """What `ckpt dump` answers."""
    checkpoint = report.checkpoint
    return {
        "id": report.id,
        "job": checkpoint.job,
        "created": rfc3339(checkpoint.created_ns),
        "frozen_ms": milliseconds(checkpoint.frozen_ns),
        "dump_ms": milliseconds(checkpoint.dump_ns),
        "total_ms": milliseconds(report.total_ns),
        "image_bytes": checkpoint.image_bytes,
        "new_bytes": report.new_bytes,
        "stored_bytes": report.stored_bytes,
        "trees": [_tree_summary(tree) for tree in checkpoint.workload.trees],
        "parent": checkpoint.parent,
        "saved_files": len(checkpoint.saved_files),
        "saved_bytes": checkpoint.saved_bytes,
        "stopped": report.stopped,
        "warnings": list(report.warnings),
    }


def restore_document(report: RestoreReport) -> dict[str, Any]:
    """What `ckpt restore` answers for one restored workload."""
    return {
        "id": report.id,
        "job": report.job,
        "pid": report.pid,
        "pids": list(report.pids),
        "cgroup": report.cgroup,
        "restore_ms": milliseconds(report.restore_ns),
        "lazy": report.lazy,
        "resumed_ms": milliseconds(report.resumed_ns),
        "total_ms": milliseconds(report.total_ns),
        "file_changes": [plain(change) for change in report.file_changes],
        "inodes": plain(report.inodes),
        "warnings": list(report.warnings),
    }


def group_dump_document(report: GroupDumpReport) -> dict[str, Any]:
    """What `ckpt dump --group` answers."""
    return {
        "group": report.name,
        "instant": report.instant,
        "skew_ms": milliseconds(report.skew_ns),
        "frozen_ms": milliseconds(report.frozen_ns),
        "total_ms": milliseconds(report.total_ns),
        "checkpoints": [dump_document(member) for member in report.members],
        "warnings": list(report.warnings),
    }


def group_restore_document(report: GroupRestoreReport) -> dict[str, Any]:
    """What `ckpt restore --group` answers."""
    return {
        "group": report.name,
        "instant": report.instant,
        "total_ms": milliseconds(report.total_ns),
        "restored": [restore_document(member) for member in report.members],
    }


def list_document(checkpoints: Iterable[StoredCheckpoint]) -> dict[str, Any]:
    """What `ckpt list` answers."""
    return {"checkpoints": [_summary(stored) for stored in checkpoints]}


def show_document(stored: StoredCheckpoint) -> dict[str, Any]:
    """What `ckpt show` answers: everything that the manifest says but the chunks."""
    checkpoint = stored.checkpoint
    workload = checkpoint.workload
    return _summary(stored) | {
        "dump_ms": milliseconds(checkpoint.dump_ns),
        "host": plain(checkpoint.host),
        "clocks": plain(checkpoint.clocks),
        "timers": plain(checkpoint.timers),
        "settings": plain(checkpoint.settings),
        "options": plain(checkpoint.options),
        "target": workload.kind.value,
        "cgroup": workload.cgroup,
        "cgroups": plain(workload.cgroups),
        "trees": [_tree(tree) for tree in workload.trees],
        "external_mounts": plain(workload.external_mounts),
        "outside_files": plain(workload.outside_files),
        "inodes": plain(checkpoint.inodes),
        "image_sets": [_image_set(images) for images in checkpoint.image_sets],
        "carried_files": [
            {"path": carried.path, "size_bytes": carried.content.size_bytes}
            for carried in checkpoint.carried_files
        ],
        "saved_files": [
            {
                "path": saved.path,
                "size_bytes": saved.content.size_bytes,
                "mode": saved.mode,
                "mtime_ns": saved.mtime_ns,
            }
            for saved in checkpoint.saved_files
        ],
        "saved_directories": list(checkpoint.saved_directories),
        "volumes": [
            {
                "mountpoint": volume.mountpoint,
                "filesystem": volume.filesystem,
                "device": volume.device,
                "size_bytes": volume.content.size_bytes,
            }
            for volume in checkpoint.volumes
        ],
    }


def check_document(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """What `ckpt check` answers."""
    return {"ok": not blockers(findings), "findings": [plain(finding) for finding in findings]}


def verify_document(report: VerifyReport) -> dict[str, Any]:
    """What `ckpt verify` answers."""
    return {
        "ok": not report.problems,
        "checked_chunks": report.checked_chunks,
        "checked_bytes": report.checked_bytes,
        "problems": [plain(problem) for problem in report.problems],
    }


def removal_document(ids: Iterable[str], report: SweepReport) -> dict[str, Any]:
    """What `ckpt rm` answers."""
    return {
        "removed": list(ids),
        "removed_objects": report.removed_objects,
        "freed_bytes": report.freed_bytes,
    }


def problem_of(subject: str, error: CkptError) -> dict[str, Any]:
    """An error of one of many things, in the form of a verification's problems."""
    return {"slug": error.slug, "subject": subject, "message": error.message}


def plain(value: Any) -> Any:
    """A value of the model as JSON has it: fields keep their names."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def _summary(stored: StoredCheckpoint) -> dict[str, Any]:
    checkpoint: Checkpoint = stored.checkpoint
    return {
        "id": stored.id,
        "job": checkpoint.job,
        "message": checkpoint.message,
        "created": rfc3339(checkpoint.created_ns),
        "frozen_ms": milliseconds(checkpoint.frozen_ns),
        "image_bytes": checkpoint.image_bytes,
        "stored_bytes": stored.stored_bytes,
        "tags": list(stored.tags),
        "parent": checkpoint.parent,
        "group": plain(checkpoint.group),
    }


def _tree_summary(tree: Tree) -> dict[str, Any]:
    return {
        "pid": tree.root,
        "tasks": len(tree.processes),
        "threads": sum(len(process.threads) for process in tree.processes),
    }


def _tree(tree: Tree) -> dict[str, Any]:
    return _tree_summary(tree) | {
        "processes": plain(tree.processes),
        "namespaces": plain(tree.namespaces),
        "time_offsets": plain(tree.time_offsets),
    }


def _image_set(images: ImageSet) -> dict[str, Any]:
    return {
        "pid": images.root,
        "image_bytes": images.image_bytes,
        "statistics": plain(images.statistics),
        "files": [
            {"name": file.name, "size_bytes": file.size_bytes, "chunks": -(-file.size_bytes // CHUNK_BYTES)}
            for file in images.files
        ],
    }
