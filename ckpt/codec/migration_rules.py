"""What a message of a migration must satisfy beyond the types of its fields, so that nothing hostile travels inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ckpt.codec import names
from ckpt.codec.limits import PATH_BYTES_MAX
from ckpt.codec.migration_messages import (
    DIGEST_BYTES,
    FILES_MAX,
    KEY_BYTES,
    KNOWN_PAGES_MAX,
    PAYLOAD_BYTES_MAX,
    RUN,
    Abort,
    AskDirect,
    AskFile,
    AskState,
    Commit,
    Direct,
    EndRound,
    FileBlocks,
    FileDigests,
    FileKnown,
    Forget,
    Held,
    ImageFile,
    KnownPages,
    Offer,
    Pages,
    Prepare,
    RoundDone,
    Running,
    State,
    WithPayload,
    unpack_runs,
)
from ckpt.codec.packed import Refused
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.migration import TargetState
from ckpt.units import PAGE_BYTES, Pid

_OFFSET_MAX: Final = (1 << 63) - 1
_PAGE_MAX: Final = 1 << 52
_ROUNDS_MAX: Final = 1 << 31
_WARNINGS_MAX: Final = 1000
_REF_MAX: Final = 256
_ROOTS_MAX: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SPACE: Final = re.compile(r"[0-9]{1,10}/pagemap-(shmem-)?[0-9]{1,20}", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)
_PORT_MAX: Final = 0xFFFF
_HOST_BYTES_MAX: Final = 255
_PIDS: Final = ("same", "new")


def check_migration(message: object) -> None:
    """Refuse a message that no ckpt says.

    Raises:
        Refused: names the field.
    """
    match message:
        case Offer() | Commit() | Abort() | Forget() | AskState() | State() | AskDirect():
            _check_named(message)
        case Direct(port=port, key=key):
            _expect(0 < port <= _PORT_MAX, "port", "no port")
            _expect(len(key) == KEY_BYTES, "key", f"{len(key)} bytes, and {KEY_BYTES} belong there")
        case Pages(space=space, runs=runs):
            _check_payload(message)
            _check_runs(space, runs, message.plain_bytes // PAGE_BYTES)
            _expect(message.plain_bytes % PAGE_BYTES == 0, "plain_bytes", "no whole pages")
        case KnownPages(space=space, runs=runs):
            _check_payload(message)
            _check_runs(space, runs, message.plain_bytes // DIGEST_BYTES)
            _expect(message.plain_bytes > 0, "plain_bytes", "no pages")
            _expect(message.plain_bytes <= KNOWN_PAGES_MAX * DIGEST_BYTES, "plain_bytes", "too many pages")
            _expect(message.plain_bytes % DIGEST_BYTES == 0, "plain_bytes", "no whole digests")
        case ImageFile(name=name, mode=mode, offset=offset):
            _check_payload(message)
            _refuse("name", names.refuse_component(name))
            _expect(0 <= mode <= 0o7777, "mode", "other bits than permissions")
            _expect(0 <= offset <= _OFFSET_MAX - PAYLOAD_BYTES_MAX, "offset", "no place in a file")
        case FileDigests(number=number):
            _check_payload(message)
            _check_number(number)
            _expect(message.plain_bytes % DIGEST_BYTES == 0, "plain_bytes", "no whole digests")
        case FileBlocks(number=number, path=path, file_bytes=file_bytes, first_block=first):
            _check_payload(message)
            _check_number(number)
            _refuse("path", names.refuse_absolute_path(path))
            _expect(0 <= file_bytes <= _OFFSET_MAX, "file_bytes", "no size of a file")
            _expect(0 <= first <= file_bytes, "first_block", "not in the file")
        case AskFile(number=number, path=path):
            _check_number(number)
            _refuse("path", names.refuse_absolute_path(path))
        case FileKnown(number=number, file_bytes=file_bytes):
            _check_number(number)
            _expect(0 <= file_bytes <= _OFFSET_MAX, "file_bytes", "no size of a file")
        case EndRound(number=number) | RoundDone(number=number):
            _expect(0 <= number <= _ROUNDS_MAX, "number", "no number of a round")
        case Prepare(absent=absent, made=made):
            for index, path in enumerate(absent):
                _refuse(f"absent[{index}]", names.refuse_absolute_path(path))
            for index, directory in enumerate(made):
                _refuse(f"made[{index}].path", names.refuse_absolute_path(directory.path))
                _expect(0 <= directory.mode <= 0o7777, f"made[{index}].mode", "other bits than permissions")
                _expect(0 <= directory.uid < 1 << 32, f"made[{index}].uid", "no uid")
                _expect(0 <= directory.gid < 1 << 32, f"made[{index}].gid", "no gid")
        case Held() | Running():
            _check_restored(message)
        case _:
            pass


def _check_named(message: Offer | Commit | Abort | Forget | AskState | State | AskDirect) -> None:
    _expect(bool(_ID.fullmatch(message.migration)), "migration", "no id of a migration")
    if isinstance(message, AskDirect):
        # In numbers: a name would be asked of whoever the resolver asks.
        _expect(bool(_ADDRESS.fullmatch(message.address)), "address", "this is no address")
    if isinstance(message, Offer | State):
        _refuse("job", names.refuse_label(message.job) if message.job else "")
    if isinstance(message, State):
        _expect(message.state in ("", *TargetState), "state", "no state of a target")
    if isinstance(message, Offer):
        _check_policies(message)
        _expect(len(message.source_host) <= _HOST_BYTES_MAX, "source_host", "longer than any name of a host")
        _expect(1 <= message.attempt <= _ROUNDS_MAX, "attempt", "no number of an attempt")
        _expect(len(message.base) <= _REF_MAX, "base", "longer than any name of a checkpoint")
        _check_roots(message.roots)


def _check_policies(offer: Offer) -> None:
    """They are written down, and a restore goes by them, perhaps once more after a crash."""
    _expect(offer.time in list(TimePolicy), "time", "no policy")
    _expect(offer.inodes in list(InodePolicy), "inodes", "no policy")
    _expect(offer.pids in _PIDS, "pids", f"neither {' nor '.join(_PIDS)}")
    _expect(len(offer.cgroup) <= PATH_BYTES_MAX, "cgroup", "longer than any path")


def _check_roots(roots: Sequence[Pid]) -> None:
    _expect(len(roots) <= _ROOTS_MAX, "roots", f"more than {_ROOTS_MAX}")
    _expect(all(root > 0 for root in roots) and len(set(roots)) == len(roots), "roots", "not one pid each")


def _check_payload(message: WithPayload) -> None:
    plain, size = message.plain_bytes, message.size_bytes
    _expect(0 <= plain <= PAYLOAD_BYTES_MAX, "plain_bytes", f"not between 0 and {PAYLOAD_BYTES_MAX}")
    fits = 0 < size < plain if message.is_compressed else size == plain
    _expect(fits, "size_bytes", f"{size} do not go with {plain} plain ones")


def _check_runs(space: str, packed: bytes, pages: int) -> None:
    _expect(bool(_SPACE.fullmatch(space)), "space", "this is no space")
    _expect(len(packed) % RUN.size == 0, "runs", "they end within one")
    runs = unpack_runs(packed)
    _expect(all(count and page + count <= _PAGE_MAX for page, count in runs), "runs", "no pages")
    ascend = all(page + count <= after for (page, count), (after, _) in pairwise(runs))
    _expect(ascend, "runs", "they do not ascend")
    _expect(sum(count for _, count in runs) == pages, "runs", f"not the {pages} pages of the payload")


def _check_restored(message: Held | Running) -> None:
    # What runs may have ended since.
    has_ended = isinstance(message, Running) and not message.pid and not message.pids
    _expect(has_ended or (message.pid > 0 and message.pid in message.pids), "pid", "none of the pids")
    _expect(len(message.pids) <= _ROOTS_MAX, "pids", f"more than {_ROOTS_MAX}")
    _expect(len(message.warnings) <= _WARNINGS_MAX, "warnings", f"more than {_WARNINGS_MAX}")
    _refuse("cgroup", names.refuse_absolute_path(message.cgroup))


def _check_number(number: int) -> None:
    _expect(0 <= number < FILES_MAX, "number", f"not between 0 and {FILES_MAX - 1}")


def _expect(is_so: bool, field: str, otherwise: str) -> None:  # noqa: FBT001 - it is what is checked
    if not is_so:
        raise Refused(otherwise).inside(field)


def _refuse(field: str, reason: str) -> None:
    if reason:
        raise Refused(reason).inside(field)
