"""What changed between two checkpoints: of what their images hold, and of what their manifests say.

Rules: only metadata and digests are read, no page. Where the images of one cannot be read, what the manifests say is
compared all the same, and a warning tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ckpt.errors import CkptError
from ckpt.flow.contents import page_digests, read_contents
from ckpt.flow.diff_items import change_of, item_changes
from ckpt.flow.diff_memory import space_changes
from ckpt.flow.diff_tree import TreeChanges
from ckpt.flow.matching import Pair, both, pair_by, pair_trees
from ckpt.flow.ports import ContentsReader, Store
from ckpt.model.changes import CheckpointChanges, FieldChange, ItemChange, SpaceChange
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.clocks import ClockAdvance
from ckpt.model.contents import TreeContents
from ckpt.model.inodes import InodeRecord, RoleKind
from ckpt.model.memory import AddressSpace
from ckpt.model.reports import StoredCheckpoint
from ckpt.units import Nanoseconds

# Not the number of links: ckpt's own pins are some of them.
_INODE: Final = (
    "kind",
    "device",
    "inode",
    "generation",
    "size_bytes",
    "mode",
    "uid",
    "gid",
    "mtime_ns",
    "deleted",
    "digest",
)


def diff(
    store: Store, reader: ContentsReader, before: StoredCheckpoint, after: StoredCheckpoint
) -> CheckpointChanges:
    """Everything that changed from the one to the other."""
    warnings: list[str] = []
    trees = _trees(store, reader, (before, after), warnings)
    changes = [TreeChanges(*pair) for pair in trees]
    memory: list[SpaceChange] = []
    for tree in changes:
        memory += _memory(store, before, after, tree, warnings)
    return CheckpointChanges(
        before=before.id,
        after=after.id,
        passed=_passed(before.checkpoint, after.checkpoint),
        tasks=tuple(item for tree in changes for item in tree.task_changes()),
        descriptors=tuple(item for tree in changes for item in tree.descriptor_changes()),
        memory=tuple(memory),
        files=tuple(
            item_changes(_inodes(before.checkpoint, after.checkpoint), lambda inode: inode.path, _INODE)
        ),
        sockets=tuple(item for tree in changes for item in tree.socket_changes()),
        pipes=tuple(item for tree in changes for item in tree.pipe_changes()),
        limits=(
            *(item for tree in changes for item in tree.limit_changes()),
            *_cgroup_changes(before.checkpoint, after.checkpoint),
        ),
        warnings=tuple(warnings),
    )


def _trees(
    store: Store,
    reader: ContentsReader,
    checkpoints: tuple[StoredCheckpoint, StoredCheckpoint],
    warnings: list[str],
) -> list[Pair[TreeContents]]:
    contents = []
    for stored in checkpoints:
        try:
            contents.append(read_contents(store, reader, stored))
        except CkptError as error:
            warnings.append(f"What is in {stored.id[:12]} cannot be compared: {error.message}")
    return pair_trees(*contents) if len(contents) == 2 else []


def _memory(
    store: Store,
    before: StoredCheckpoint,
    after: StoredCheckpoint,
    tree: TreeChanges,
    warnings: list[str],
) -> tuple[SpaceChange, ...]:
    def digests(stored: StoredCheckpoint, contents: TreeContents | None) -> Callable[[AddressSpace], bytes]:
        # All of one checkpoint before the other's: a store keeps at hand what it has read of the last one.
        found = (
            {space.name: page_digests(store, stored, contents.root, space) for space in contents.memory}
            if contents
            else {}
        )
        return lambda space: found[space.name]

    try:
        return space_changes(
            tree.before,
            tree.after,
            tree.pids,
            digests(before, tree.before),
            digests(after, tree.after),
        )
    except CkptError as error:
        warnings.append(f"The memory cannot be compared: {error.message}")
        return ()


def _passed(before: Checkpoint, after: Checkpoint) -> ClockAdvance:
    """How far the clocks went, as the first tree sees them."""
    was, now = (checkpoint.workload.trees[0].time_offsets for checkpoint in (before, after))
    return ClockAdvance(
        realtime_ns=Nanoseconds(after.clocks.realtime_ns - before.clocks.realtime_ns),
        monotonic_ns=Nanoseconds(
            after.clocks.monotonic_ns + now.monotonic_ns - before.clocks.monotonic_ns - was.monotonic_ns
        ),
        boottime_ns=Nanoseconds(
            after.clocks.boottime_ns + now.boottime_ns - before.clocks.boottime_ns - was.boottime_ns
        ),
    )


def _inodes(before: Checkpoint, after: Checkpoint) -> list[Pair[InodeRecord]]:
    # Pipes and sockets are told by what the images say of them; and directories above a file are not held.
    ours, theirs = (
        [
            inode
            for inode in checkpoint.inodes
            if inode.path.startswith("/") and any(role.kind is not RoleKind.ABOVE for role in inode.roles)
        ]
        for checkpoint in (before, after)
    )
    return pair_by(ours, theirs, both(lambda inode: inode.path))


def _cgroup_changes(before: Checkpoint, after: Checkpoint) -> Iterator[ItemChange]:
    ours, theirs = _settings(before), _settings(after)
    for key in dict.fromkeys((*theirs, *ours)):
        was, now = ours.get(key), theirs.get(key)
        if was != now:
            fields = () if was is None or now is None else (FieldChange(name="value", before=was, after=now),)
            yield ItemChange(change=change_of(was, now), pid=None, subject=" ".join(key), fields=fields)


def _settings(checkpoint: Checkpoint) -> dict[tuple[str, str], str]:
    """The settings of cgroups, by the path below the workload's own and their name."""
    found: dict[tuple[str, str], str] = {}
    above: dict[str, str] = {}
    for record in checkpoint.workload.cgroups:
        # Two jobs have other cgroups: what counts is where in the job's.
        top = above.setdefault(record.hierarchy, record.path)
        place = record.path.removeprefix(top) or "/"
        for setting in record.settings:
            found[f"{record.hierarchy}:{place}", setting.name] = setting.value
    return found
