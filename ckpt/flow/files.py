"""The files of a workload at a restore: which contents they are to have, and which changes are allowed.

Rules:
- What travels in the checkpoint is written back, whatever is there: only its identity is compared.
- A file that is newer than the memory stays so only if the user wants it; one that is executed may never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from ckpt.errors import FilesChanged, ObjectCorrupt, WrongState
from ckpt.flow.ports import CheckpointSource, Inspector, Operation
from ckpt.flow.volumes import outside_volumes
from ckpt.model.checkpoint import Checkpoint, SavedFile, StoredFile
from ckpt.model.inodes import (
    IDENTITY_DIFFERENCES,
    Difference,
    DigestState,
    FileChange,
    FileKind,
    FilesPolicy,
    InodePolicy,
    InodeRecord,
    RoleKind,
    lie_of,
)
from ckpt.units import CheckpointId

REASONS_MAX: Final = 20
"""How many changed files one error names; the count is always given."""

_CONTENT_DIFFERENCES: Final = frozenset((Difference.CONTENT, Difference.SIZE, Difference.MODE))
_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What the user wants of the files: `files` None for those that are as they were."""

    inodes: InodePolicy
    files: FilesPolicy | None

    def allow(self, change: FileChange, *, is_saved: bool, is_content: bool) -> bool:
        """Whether a restore goes on though this changed.

        Args:
            change: What changed.
            is_saved: Whether the file is written back.
            is_content: Whether it is a file that the workload reads and writes.
        """
        if self.inodes is InodePolicy.IGNORE:
            return True
        if is_content and self.files is FilesPolicy.NEWEST and change.difference in _CONTENT_DIFFERENCES:
            return True
        # A missing file that is written back is made anew, and has another inode then.
        is_identity = change.difference in IDENTITY_DIFFERENCES or is_saved
        return is_identity and self.inodes is not InodePolicy.VERIFY


def policies_for(
    ref: str, inodes: InodePolicy, files: FilesPolicy | None, checkpoint: Checkpoint
) -> Policies:
    """The policies for this checkpoint: without a word of the user's, saved files are written back.

    Raises:
        WrongState: saved files are wanted, and it has none.
    """
    has_saved = bool(checkpoint.saved_files or checkpoint.saved_directories)
    if files is FilesPolicy.SAVED and not has_saved:
        raise WrongState(
            subject=ref,
            state="a checkpoint without saved files",
            operation="a restore with --files saved",
            needed="to have some",
            remedy="Files are saved by 'ckpt dump --with-files PATH'.",
        )
    return Policies(inodes=inodes, files=FilesPolicy.SAVED if files is None and has_saved else files)


def check_records(checkpoint_id: CheckpointId, checkpoint: Checkpoint) -> None:
    """Refuse records that no host can have made, before anything is done by them.

    Raises:
        ObjectCorrupt: one lies; says which, and how.
    """
    if lie := _lie_about_trees(checkpoint):
        raise ObjectCorrupt(kind="manifest", name=checkpoint_id, reason=f"it lies about its processes: {lie}")
    for inode in checkpoint.inodes:
        if lie := lie_of(inode):
            raise ObjectCorrupt(
                kind="manifest", name=checkpoint_id, reason=f"it lies about the file {inode.path}: {lie}"
            )


def _lie_about_trees(checkpoint: Checkpoint) -> str:
    """What cannot be true of the trees and their image sets; "" for nothing."""
    trees = checkpoint.workload.trees
    roots = sorted(tree.root for tree in trees)
    if not roots:
        return "there are none"
    if len(set(roots)) != len(roots):
        return "two trees have the same root"
    for tree in trees:
        if not tree.processes or tree.processes[0].pid != tree.root:
            return f"the tree of process {tree.root} does not begin with it"
    if sorted(images.root for images in checkpoint.image_sets) != roots:
        return "the image sets are not those of the trees"
    return ""


def judge_files(
    ref: str,
    policies: Policies,
    checkpoint: Checkpoint,
    inspector: Inspector,
    *,
    made: frozenset[str] = frozenset(),
) -> tuple[FileChange, ...]:
    """Compare the files with the recorded ones: what changed that may have. `made` are directories that will be made.

    Raises:
        FilesChanged: something changed that may not.
    """
    if policies.inodes is InodePolicy.IGNORE and policies.files is not FilesPolicy.NEWEST:
        return ()
    carried = {file.path for file in checkpoint.carried_files}
    saved = (
        {file.path for file in checkpoint.saved_files} if policies.files is FilesPolicy.SAVED else set[str]()
    )
    # What saved files are in is made for them.
    made |= {directory for path in saved for directory in _above(path)}
    contents = {inode.path for inode in checkpoint.inodes if _is_content(inode)}
    compared = (
        _without_content(inode) if inode.path in saved else inode
        for inode in outside_volumes(checkpoint.inodes, checkpoint.volumes)
        if inode.path not in carried
    )
    changes = tuple(
        change
        for change in inspector.differences(tuple(compared))
        if change.path not in saved or _concerns_inode(change)
    )
    forbidden = [
        change
        for change in changes
        if not policies.allow(
            change,
            is_saved=change.path in saved
            or (change.difference is Difference.MISSING and change.path in made),
            is_content=change.path in contents,
        )
    ]
    if forbidden:
        raise FilesChanged(
            ref=ref,
            count=len({change.path for change in forbidden}),
            reasons=tuple(str(change) for change in forbidden[:REASONS_MAX]),
            remedy="Put the files back as they were, take them as they are with --files newest, or restore with "
            "--inodes ignore at your own risk.",
        )
    return changes


def newer_files(changes: tuple[FileChange, ...], policies: Policies) -> tuple[str, ...]:
    """The files that stay as they are, though they are not as they were."""
    if policies.files is not FilesPolicy.NEWEST:
        return ()
    return tuple(sorted({change.path for change in changes if change.difference in _CONTENT_DIFFERENCES}))


def newer_warnings(paths: tuple[str, ...]) -> tuple[str, ...]:
    """A sentence about files that stay as they are; none if there is none."""
    if not paths:
        return ()
    named = ", ".join(paths[:_NAMED_MAX]) + (" …" if len(paths) > _NAMED_MAX else "")
    sentence = (
        f"{len(paths)} file(s) are not as the workload saw them last, and stay as they are now: {named}; "
        "what it keeps of them in its memory is older"
    )
    return (sentence,)


def fetch_saved(
    checkpoint_id: CheckpointId,
    checkpoint: Checkpoint,
    policies: Policies,
    operation: Operation,
    store: CheckpointSource,
) -> tuple[tuple[SavedFile, str], ...]:
    """Bring the saved files into the staging directory, each content once; gives each file with its copy."""
    if policies.files is not FilesPolicy.SAVED:
        return ()
    copies: dict[StoredFile, str] = {}
    for file in checkpoint.saved_files:
        if file.content not in copies:
            copies[file.content] = f"{operation.staging}/saved-{len(copies)}"
            store.fetch(checkpoint_id, file.content, copies[file.content])
    return tuple((file, copies[file.content]) for file in checkpoint.saved_files)


def _above(path: str) -> Iterator[str]:
    """The directories that the path leads through, but the root."""
    while path := path.rpartition("/")[0]:
        yield path


def _concerns_inode(change: FileChange) -> bool:
    return change.difference in IDENTITY_DIFFERENCES or change.difference is Difference.MISSING


def _is_content(inode: InodeRecord) -> bool:
    is_executed = inode.build_id is not None or any(role.kind is RoleKind.EXE for role in inode.roles)
    return inode.kind is FileKind.REGULAR and not is_executed


def _without_content(inode: InodeRecord) -> InodeRecord:
    """The record of a file that is written back: what is in it now need not be read."""
    return replace(inode, digest=None, digest_state=DigestState.CHANGED)
