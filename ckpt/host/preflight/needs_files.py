"""Rules over needs: the files that the workload holds, compared with what is here.

Rule: what a restore with its default policies refuses is a blocker; numbers that differ are shown as they were, and
are told in one finding.
Source: ckpt.host.inspection.compare; criu/files-reg.c (validate_file).
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ckpt.host.inspection import elf
from ckpt.host.inspection.compare import differences, is_compared
from ckpt.host.inspection.digests import DigestCache
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.inodes import IDENTITY_DIFFERENCES, Difference, DigestState, FileChange, FileKind, InodeRecord
from ckpt.model.needs import Needs

_IDENTITIES: Final = IDENTITY_DIFFERENCES - {Difference.NO_LOG}


def _of(*kinds: Difference) -> Callable[[Needs, Here], Iterator[Found]]:
    """A rule that finds these differences, each file for itself."""

    def find(needs: Needs, here: Here) -> Iterator[Found]:
        for change in here.once(_changes, needs):
            if change.difference in kinds:
                yield Found(pid=None, subject=change.path, message=_sentence(change))

    return find


def _changes(needs: Needs, here: Here) -> tuple[FileChange, ...]:
    """What all rules of this module look at."""
    return differences(needs.files, DigestCache(f"{here.state}/digests.sqlite"))


def _sentence(change: FileChange) -> str:
    match change.difference:
        case Difference.MISSING:
            return f"{change.path} is missing here ({change.found})"
        case Difference.CONTENT:
            return f"{change.path} has another content here (SHA-256 {change.found}…, and was {change.recorded}…)"
        case Difference.SIZE:
            return f"{change.path} has {change.found} bytes here, and had {change.recorded}"
        case Difference.MODE:
            return f"{change.path} has the mode {change.found} here, and had {change.recorded}"
        case Difference.KIND:
            return f"{change.path} is a {change.found} here, and was a {change.recorded}"
        case Difference.NO_LOG:
            return f"{change.path}, which is only appended to, is missing here and will be made anew"
        case Difference.DEVICE | Difference.INODE | Difference.GENERATION:
            return str(change)


def _build_ids(needs: Needs, _here: Here) -> Iterator[Found]:
    """Programs and libraries whose content was not recorded: CRIU compares their build-ids."""
    for record in needs.files:
        if record.build_id is None or record.digest_state is DigestState.STABLE or not is_compared(record):
            continue
        found = _build_id(record)
        if found is not None and found != record.build_id:
            yield Found(
                pid=None,
                subject=record.path,
                message=f"{record.path} has the build-id {found or 'none'} here, and had {record.build_id}",
            )


def _build_id(record: InodeRecord) -> str | None:
    """The build-id of the file that is here, "" for none; None if there is no file to compare."""
    if record.kind is not FileKind.REGULAR:
        return None
    try:
        # To open a device may be an order to it.
        if not stat.S_ISREG(os.lstat(record.path).st_mode):
            return None
        fd = os.open(record.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return elf.build_id(fd) or ""
    except OSError:
        return None
    finally:
        os.close(fd)


def _identities(needs: Needs, here: Here) -> Iterator[Found]:
    by_path = _by_path(change for change in here.once(_changes, needs) if change.difference in _IDENTITIES)
    if by_path:
        first = next(iter(by_path))
        yield Found(
            pid=None,
            subject=f"{len(by_path)} file(s)",
            message=f"{len(by_path)} file(s) have other device or inode numbers here, {first} for one; the workload "
            "will be shown those that it knows",
        )


def _by_path(changes: Iterable[FileChange]) -> dict[str, list[FileChange]]:
    found: dict[str, list[FileChange]] = defaultdict(list)
    for change in changes:
        found[change.path].append(change)
    return found


_SAME: Final = (
    "Bring the file as it was, or restore with --files newest: then the memory is older than the file."
)

RULES: Final = (
    NeedRule(
        name="file-missing",
        severity=Severity.BLOCKER,
        title="Files that the workload holds and this host lacks",
        effect="CRIU cannot open them.",
        remedy="Copy it here, with its mode, or mount the file system that it is on.",
        find=_of(Difference.MISSING),
    ),
    NeedRule(
        name="file-kind",
        severity=Severity.BLOCKER,
        title="A path that leads to something of another kind",
        effect="The restore is refused, or the workload would meet something else.",
        remedy="Put the former file back.",
        find=_of(Difference.KIND),
    ),
    NeedRule(
        name="file-size",
        severity=Severity.BLOCKER,
        title="Files of another size",
        effect="CRIU refuses them.",
        remedy=_SAME,
        find=_of(Difference.SIZE),
    ),
    NeedRule(
        name="file-content",
        severity=Severity.BLOCKER,
        title="Files of the same size with another content",
        effect="CRIU would take them in silence; a restore compares digests, and refuses.",
        remedy=_SAME,
        find=_of(Difference.CONTENT),
    ),
    NeedRule(
        name="file-mode",
        severity=Severity.BLOCKER,
        title="Files with another mode",
        effect="CRIU refuses them.",
        remedy="Give the file its former mode with chmod, or restore with --files newest.",
        find=_of(Difference.MODE),
    ),
    NeedRule(
        name="file-build-id",
        severity=Severity.BLOCKER,
        title="Programs and libraries of another build",
        effect="CRIU refuses them: the code in memory would not be that of the file.",
        remedy="Install the very same build of the program or library.",
        find=_build_ids,
    ),
    NeedRule(
        name="log-missing",
        severity=Severity.INFO,
        title="Files that are only appended to, and are gone",
        effect="They are made anew.",
        remedy="",
        find=_of(Difference.NO_LOG),
    ),
    NeedRule(
        name="file-identity",
        severity=Severity.INFO,
        title="Files with other device and inode numbers",
        effect="The workload is shown the numbers that it knows (docs/inodes.md).",
        remedy="",
        find=_identities,
    ),
)
