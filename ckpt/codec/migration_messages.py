"""What two ckpts say to each other to move a workload; its frames are those of messages.py.

    PAYLOAD-BEARING = FRAME CONTENT      the frame's message says how long the content is
    RUNS            = (PAGE u64, COUNT u32)*      little endian

Rules:
- A message with a payload says its length on the wire (`size_bytes`) and its length in plain (`plain_bytes`); they are
  equal unless it is compressed. The content is never msgpack, so that it is not copied.
- Runs ascend and do not touch what another one of the same message has.
- A source that said AskDirect may connect to the port of Direct, show there that it has the key, and say SwitchToDirect.
  All that it says after Switched comes over that connection (ckpt.remote.records); answers stay where they were. The
  key is a new one each time, seals that connection, and is used for nothing else.
- Messages of the source with a payload get no answer. If they cannot be kept, Stopped comes, once, in between answers:
  all that follows is dropped or refused, until one of the source's messages that has the id of a migration.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.needs import Needs
from ckpt.model.pages import PageRun
from ckpt.model.shipping import ShippedDirectory
from ckpt.units import ByteCount, Nanoseconds, Pid

PAYLOAD_BYTES_MAX: Final = 4 << 20
"""Plain bytes of one payload; what is compressed is never longer."""

DIGEST_BYTES: Final = 32
KNOWN_PAGES_MAX: Final = 65536
"""Pages of one KnownPages."""

KEY_BYTES: Final = 32
"""The key of a direct connection."""

FILES_MAX: Final = 1 << 20
"""Files that one migration ships."""

FILE_DIGESTS_MAX: Final = 1 << 20
"""Digests of one answer to AskFile."""

RUN: Final = struct.Struct("<QI")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskDirect:
    """Listen for a connection of this migration; `address` is where I reached your SSH, if you cannot tell."""

    migration: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """The answer to AskDirect: at this port, until you say anything but SwitchToDirect, or a few seconds are over."""

    port: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchToDirect:
    """I have connected, and showed the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """The answer to SwitchToDirect: I read nothing any more but what comes over that connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Will you take this workload? `job` is "" for one without a name; `resume`: you may have some of it.

    `attempt` counts the offers of one migration, from 1 on: one that comes late is known by it. `base` names a checkpoint
    in the target's store to begin with, "" for none; `roots` are those of the workload's trees then.
    """

    migration: str
    job: str
    source_host: str
    needs: Needs
    time: str
    inodes: str
    pids: str
    cgroup: str
    resume: bool
    attempt: int = 1
    base: str = ""
    roots: tuple[Pid, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The answer to Offer; `has_pages`: ask me what I have."""

    has_pages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Pages of one space, in the order of the runs; a payload follows, and no answer."""

    space: str
    runs: bytes
    plain_bytes: int
    size_bytes: int
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What was sent without an answer cannot be kept, because of this error."""

    slug: str
    message: str
    hint: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRound:
    """All pages of this round were sent."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """The answer to EndRound: so many plain bytes came in it."""

    number: int
    received_bytes: ByteCount


@dataclass(frozen=True, slots=True, kw_only=True)
class AskKnown:
    """Which pages do you have?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPages:
    """A part of the answer to AskKnown: the payload has the SHA-256 of each page of the runs."""

    space: str
    runs: bytes
    plain_bytes: int
    size_bytes: int
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEnd:
    """The end of the answer to AskKnown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A piece of an image file of the tree `root`, of a carried one where that is 0; a payload follows, no answer."""

    root: Pid
    name: str
    mode: int
    offset: int
    plain_bytes: int
    size_bytes: int
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFile:
    """What have you at this path, which will be the shipped file `number`?"""

    number: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigests:
    """A part of the answer to AskFile: the payload has the SHA-256 of each block of the file, in order."""

    number: int
    plain_bytes: int
    size_bytes: int
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKnown:
    """The end of the answer to AskFile: whether a regular file is there, and its size."""

    number: int
    is_there: bool
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBlocks:
    """Blocks of the shipped file `number`, which has `file_bytes` in all; a payload follows, and no answer."""

    number: int
    path: str
    file_bytes: int
    first_block: int
    plain_bytes: int
    size_bytes: int
    is_compressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """All is sent: restore it, hold it, and say Held.

    At the paths `absent` no file may be found; the directories `made` are made where they are missing.
    """

    checkpoint: Checkpoint
    absent: tuple[str, ...] = ()
    made: tuple[ShippedDirectory, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The answer to Prepare: it is restored, durable, and has not run. `pid` is the first of `pids`."""

    pid: Pid
    pids: tuple[Pid, ...]
    cgroup: str
    restore_ns: Nanoseconds
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """It will never run here again: let it go."""

    migration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The answer to Commit: it runs here. `pid` is the first of `pids`."""

    pid: Pid
    pids: tuple[Pid, ...]
    cgroup: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """It goes on here: drop what you have of it."""

    migration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """The answer to Abort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """It is over: drop your record."""

    migration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """The answer to Forget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskState:
    """How far are you with this migration?"""

    migration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The answer to AskState: the state on record, "" without one; `pid` is 0 where nothing of it lives."""

    migration: str
    state: str
    job: str
    pid: Pid


WithPayload = Pages | ImageFile | FileBlocks | KnownPages | FileDigests
"""The messages that a payload follows."""

MigrationMessage = (
    AskDirect
    | Direct
    | SwitchToDirect
    | Switched
    | Offer
    | Accepted
    | Stopped
    | EndRound
    | RoundDone
    | AskKnown
    | KnownEnd
    | AskFile
    | FileKnown
    | Prepare
    | Held
    | Commit
    | Running
    | Abort
    | Aborted
    | Forget
    | Forgotten
    | AskState
    | State
    | WithPayload
)

MIGRATION_KINDS: Final[dict[str, type[MigrationMessage]]] = {
    "ask-direct": AskDirect,
    "direct": Direct,
    "switch-to-direct": SwitchToDirect,
    "switched": Switched,
    "offer": Offer,
    "accepted": Accepted,
    "stopped": Stopped,
    "pages": Pages,
    "end-round": EndRound,
    "round-done": RoundDone,
    "ask-known": AskKnown,
    "known-pages": KnownPages,
    "known-end": KnownEnd,
    "image-file": ImageFile,
    "ask-file": AskFile,
    "file-digests": FileDigests,
    "file-known": FileKnown,
    "file-blocks": FileBlocks,
    "prepare": Prepare,
    "held": Held,
    "commit": Commit,
    "running": Running,
    "abort": Abort,
    "aborted": Aborted,
    "forget": Forget,
    "forgotten": Forgotten,
    "ask-state": AskState,
    "state": State,
}
"""What each kind of message is called on the wire."""


def pack_runs(runs: Sequence[PageRun]) -> bytes:
    """The runs as Pages and KnownPages carry them."""
    return b"".join(RUN.pack(*run) for run in runs)


def unpack_runs(packed: bytes) -> tuple[PageRun, ...]:
    """The runs of a message that was checked."""
    return tuple(PageRun(*pair) for pair in RUN.iter_unpack(packed))
