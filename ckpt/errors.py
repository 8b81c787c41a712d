"""Every error that a user can meet: one tree, its families by who must act.

    CkptError
    ├── Usage                2   the call itself is wrong
    │   ├── BadDuration, BadName, AmbiguousRef
    ├── Problems             3   finished, and some of many things had problems
    ├── HostError         10-19  this machine
    │   ├── NotRoot 10, OsRefused 10
    │   ├── CommandFailed 11
    │   ├── FreezeTimeout 12
    │   ├── FeatureMissing, CriuMissing, CriuTooOld 13
    │   └── NoSpace 14
    ├── CriuError         20-29  CRIU refused: the cause, a remedy, the lines of its log that say so
    │   ├── DumpFailed 21, RestoreFailed 22, CriuStuck 23, CriuDied 24
    ├── Incompatible      30-39  carries the list of reasons
    │   ├── CannotCheckpoint 30 (NotNow), HostMismatch, CannotMigrate 31, FilesChanged 32
    ├── StoreError        40-49
    │   ├── StoreUnusable 40 (WrongKey), ObjectMissing 41, ObjectCorrupt 42, FormatUnknown 43, Untrusted 44
    ├── RemoteError       50-59  the other host, or the way to it
    │   ├── Unreachable 51 (LoginRefused), HostKeyRefused 52, PeerFailed 53 (PeerRefused,
    │   │   TransferBroken, CommitUndelivered, PagesLost),
    │   │   NoCommonProtocol 54, SetupFailed 55
    ├── ConflictError     60-69
    │   ├── Locked 61, WrongState 62, NoSuchTarget 63, SameHost 64, GroupFailed 65 (GaveUp 60)
    ├── UndoError           90   an operator must look
    └── Interrupted        130

Rules: the sentence, slug, exit code and hint belong to the class; the fields are keyword-only and kept as
attributes. The sentence names the thing and the number. A foreign exception is converted once, at its door.
A bug is not in this tree: it ends with a traceback and exit code 70.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, dataclass_transform


@dataclass_transform(kw_only_default=True, eq_default=False)
class CkptError(Exception):
    """An error with a sentence for people and a slug for programs; its subclasses declare their fields."""

    slug: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    sentence: ClassVar[str] = ""
    hint: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def _said(self) -> dict[str, object]:
        """The fields as the templates use them: lists are joined by "; "."""
        values: dict[str, object] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            values[field.name] = "; ".join(map(str, value)) if isinstance(value, tuple) else value
        return values

    @property
    def message(self) -> str:
        """One sentence that names the thing and the number."""
        return self.sentence.format_map(self._said())

    @property
    def advice(self) -> str:
        """What can be done about it; may be empty."""
        return self.hint.format_map(self._said())

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


# ------------------------------------------------------------------------------------------ 2: the call


class Usage(CkptError):
    """The call itself is wrong."""

    slug = "usage"
    exit_code = 2
    sentence = "{problem}"
    hint = "{remedy}"
    problem: str
    remedy: str = "See 'ckpt --help'."


class BadDuration(Usage):
    """A duration that cannot be read."""

    slug = "bad-duration"
    sentence = "'{text}' is not a duration."
    hint = "Write a number and a unit: 500ms, 10s, 5m, 2h."
    problem: str = ""
    text: str


class BadName(Usage):
    """A job name or tag with characters that are not allowed, or too long."""

    slug = "bad-name"
    sentence = "'{name}' cannot be the name of a {kind}."
    hint = "Use at most 64 letters, digits, '.', '_' and '-', beginning with a letter or digit."
    problem: str = ""
    kind: str
    name: str


class AmbiguousRef(Usage):
    """A prefix that several checkpoints share."""

    slug = "ambiguous-ref"
    sentence = "'{ref}' could be any of {count} checkpoints: {candidates}."
    hint = "Give more digits of the id."
    problem: str = ""
    ref: str
    count: int
    candidates: tuple[str, ...]


# ----------------------------------------------------------------------------------- 3: some of many


class Problems(CkptError):
    """An operation over many things finished, and some of them had problems (which were printed)."""

    slug = "problems"
    exit_code = 3
    sentence = "Finished with {count} problem(s)."
    count: int


# --------------------------------------------------------------------------------- 10-19: this machine


class HostError(CkptError):
    """This machine cannot do it."""

    slug = "host"
    exit_code = 10


class NotRoot(HostError):
    """The call needs root's rights."""

    slug = "not-root"
    sentence = "'{operation}' needs root, and this is uid {uid}."
    hint = "Run it with sudo."
    operation: str
    uid: int


class OsRefused(HostError):
    """The kernel refused a system call that should have worked."""

    slug = "os-refused"
    sentence = "Could not {operation} {subject}: {reason}."
    hint = "{remedy}"
    operation: str
    subject: str
    reason: str
    remedy: str = ""


class CommandFailed(HostError):
    """A program of the system failed."""

    slug = "command-failed"
    exit_code = 11
    sentence = "'{command}' failed with status {status}: {output}"
    command: str
    status: int
    output: str


class FreezeTimeout(HostError):
    """A cgroup did not freeze in time; it was thawed again."""

    slug = "freeze-timeout"
    exit_code = 12
    sentence = "{cgroup} did not freeze within {timeout_ms:g} ms and was thawed: {tasks}."
    hint = "A task in state D waits in the kernel: let it finish (see what it waits in), then try again."
    cgroup: str
    timeout_ms: float
    tasks: tuple[str, ...]


class FeatureMissing(HostError):
    """The kernel, or a tool, lacks what is needed."""

    slug = "feature-missing"
    exit_code = 13
    sentence = "This host lacks {feature}."
    hint = "{remedy}"
    feature: str
    remedy: str


class CriuMissing(HostError):
    """No CRIU was found, or the one that was named is not there."""

    slug = "criu-missing"
    exit_code = 13
    sentence = "CRIU was not found; looked at {places}."
    hint = "Run scripts/setup, or set CKPT_CRIU to the path of a working criu."
    places: tuple[str, ...]


class CriuTooOld(HostError):
    """A CRIU that cannot work here."""

    slug = "criu-too-old"
    exit_code = 13
    sentence = "{path} is CRIU {version}; {minimum} or newer is needed."
    hint = "Run scripts/setup, which installs a newer one beside it, or set CKPT_CRIU."
    path: str
    version: str
    minimum: str


class NoSpace(HostError):
    """A file system is full; what was half-written has been removed."""

    slug = "no-space"
    exit_code = 14
    sentence = "No space left in {place} ({available_bytes} bytes free, about {needed_bytes} needed)."
    hint = "Free some space there, or choose another place: {option}."
    place: str
    available_bytes: int
    needed_bytes: int
    option: str = "--store, or CKPT_STATE for the staging area"


# ---------------------------------------------------------------------------------------- 20-29: CRIU


class CriuError(CkptError):
    """CRIU refused or failed; the cause in plain words, a remedy, and the lines of its log."""

    slug = "criu"
    exit_code = 20
    sentence = "{cause}"
    hint = "{remedy}"
    cause: str
    remedy: str = ""
    log_lines: tuple[str, ...] = ()
    log_path: str = ""


class DumpFailed(CriuError):
    """A dump failed; the workload runs on."""

    slug = "dump-failed"
    exit_code = 21
    sentence = "The dump failed: {cause}."


class RestoreFailed(CriuError):
    """A restore failed; nothing of it was left running."""

    slug = "restore-failed"
    exit_code = 22
    sentence = "The restore failed: {cause}."


class CriuStuck(CriuError):
    """CRIU did not finish in time and was ended."""

    slug = "criu-stuck"
    exit_code = 23
    sentence = "CRIU did not finish {operation} within {timeout_s:g} s and was ended: {cause}."
    operation: str
    timeout_s: float


class CriuDied(CriuError):
    """CRIU ended without an answer."""

    slug = "criu-died"
    exit_code = 24
    sentence = "CRIU ended during {operation} without an answer ({status}): {cause}."
    operation: str
    status: str


# ----------------------------------------------------------------------------- 30-39: does not fit


class Incompatible(CkptError):
    """It does not fit; carries every reason, not only the first."""

    slug = "incompatible"
    exit_code = 30
    sentence = "{reasons}"
    hint = "{remedy}"
    reasons: tuple[str, ...]
    remedy: str = ""


class CannotCheckpoint(Incompatible):
    """The target cannot be checkpointed as it is."""

    slug = "cannot-checkpoint"
    exit_code = 30
    sentence = "{target} cannot be checkpointed: {reasons}."
    target: str


class NotNow(CannotCheckpoint):
    """The target cannot be checkpointed at this very moment; it was tried several times."""

    slug = "not-now"
    sentence = "{target} cannot be checkpointed at this moment: {reasons}."
    hint = "Nothing was done to it; try again."


class HostMismatch(Incompatible):
    """The checkpoint cannot be restored here as things are."""

    slug = "host-mismatch"
    exit_code = 31
    sentence = "{ref} cannot be restored here: {reasons}."
    ref: str


class CannotMigrate(Incompatible):
    """One of the two hosts, or both, have something against moving the workload; nothing was touched."""

    slug = "cannot-migrate"
    exit_code = 31
    sentence = "{target} cannot be moved to {host}: {reasons}."
    target: str
    host: str


class FilesChanged(Incompatible):
    """Files that the workload holds are not as the checkpoint recorded them."""

    slug = "files-changed"
    exit_code = 32
    sentence = "{ref}: {count} file(s) are not as they were: {reasons}."
    ref: str
    count: int


# ------------------------------------------------------------------------------------- 40-49: the store


class StoreError(CkptError):
    """The store, or something in it, is not as it must be."""

    slug = "store"
    exit_code = 40


class StoreUnusable(StoreError):
    """The store's place cannot be read or written."""

    slug = "store-unusable"
    sentence = "The store {place} cannot be used: {reason}."
    hint = "{remedy}"
    place: str
    reason: str
    remedy: str = ""


class WrongKey(StoreUnusable):
    """The key does not open the encrypted store, or none was given."""

    slug = "wrong-key"
    sentence = "The store {place} is encrypted, and {reason}."


class ObjectMissing(StoreError):
    """The store has no such thing."""

    slug = "missing"
    exit_code = 41
    sentence = "The store {place} has no {kind} {name}."
    hint = "{remedy}"
    place: str
    kind: str
    name: str
    remedy: str = ""


class ObjectCorrupt(StoreError):
    """An object's bytes are not what its name or its header promises."""

    slug = "corrupt"
    exit_code = 42
    sentence = "The {kind} {name} is damaged: {reason}."
    hint = "{remedy}"
    kind: str
    name: str
    reason: str
    remedy: str = "Run 'ckpt verify' to see what else is affected; restore another checkpoint."


class FormatUnknown(StoreError):
    """Not ours, or written by a newer ckpt."""

    slug = "format"
    exit_code = 43
    sentence = "{subject} cannot be read: {reason}."
    hint = "{remedy}"
    subject: str
    reason: str
    remedy: str = ""


class Untrusted(StoreError):
    """Nobody whom this host trusts has signed the checkpoint: restoring it would run somebody's code as root."""

    slug = "untrusted"
    exit_code = 44
    sentence = "The checkpoint {checkpoint} is not trusted: {reason}."
    hint = "{remedy}"
    checkpoint: str
    reason: str
    remedy: str = ""


# ----------------------------------------------------------------------------- 50-59: the other host


class RemoteError(CkptError):
    """The other host, or the way to it, is not as it must be; nothing was done there."""

    slug = "remote"
    exit_code = 50
    hint = "{remedy}"
    host: str
    reason: str
    remedy: str = ""


class Unreachable(RemoteError):
    """No connection to the other host."""

    slug = "unreachable"
    exit_code = 51
    sentence = "{host} cannot be reached: {reason}."


class LoginRefused(Unreachable):
    """The other host answers, and lets nobody in with what was shown."""

    slug = "login-refused"
    sentence = "{host} refused the login: {reason}."


class HostKeyRefused(RemoteError):
    """The other host does not prove that it is the one that is meant; nothing was sent to it."""

    slug = "host-key"
    exit_code = 52
    sentence = "{host} is not trusted: {reason}."


class PeerFailed(RemoteError):
    """The ckpt on the other host did not start, did not answer, or answered nonsense."""

    slug = "peer-failed"
    exit_code = 53
    sentence = "The ckpt on {host} failed: {reason}."


class PeerRefused(PeerFailed):
    """The ckpt on the other host answered that it cannot, and why: so it did not do it."""

    slug = "peer-refused"
    their_slug: str = ""
    their_exit_code: int = 0


class TransferBroken(PeerFailed):
    """The way to the target broke while a workload was being moved: it runs on where it was."""

    slug = "transfer-broken"
    sentence = "The transfer to {host} broke off: {reason}. The workload runs on here"
    hint = "Go on where it stopped: 'ckpt migrate --resume {migration}'; or drop it on both sides: 'ckpt recover'."
    migration: str


class CommitUndelivered(PeerFailed):
    """A workload was handed over, and its target could not be told to let it go."""

    slug = "commit-undelivered"
    sentence = "The workload was handed over to {host} and has ended here, but {host} could not be told to let it go: {reason}"
    hint = "Run 'ckpt migrate --resume {migration}' as soon as {host} can be reached; until then it stands still there."
    migration: str


class PagesLost(PeerFailed):
    """A workload was handed over before its memory, and the memory could not follow."""

    slug = "pages-lost"
    sentence = "{host} has taken the workload over, and not all of its memory could follow: {reason}"
    hint = "It is lost, unless 'ckpt ps' on {host} shows it: then all had come. 'ckpt recover' tidies up on both."


class NoCommonProtocol(RemoteError):
    """The two ckpts speak no common version of their protocol."""

    slug = "no-common-protocol"
    exit_code = 54
    sentence = "This ckpt and that on {host} do not understand each other: {reason}."


class SetupFailed(RemoteError):
    """ckpt could not be installed on the other host; what was there before is as it was."""

    slug = "setup-failed"
    exit_code = 55
    sentence = "ckpt could not be installed on {host}: {reason}."


# ---------------------------------------------------------------------------------- 60-69: conflicts


class ConflictError(CkptError):
    """Something else is in the way."""

    slug = "conflict"
    exit_code = 60


class Locked(ConflictError):
    """Another process holds the lock."""

    slug = "locked"
    exit_code = 61
    sentence = "{subject} is in use by {holder}."
    hint = "Wait until it has finished; 'ckpt recover' mends what a crashed one left."
    subject: str
    holder: str


class WrongState(ConflictError):
    """The thing exists, but not in the state that the call needs."""

    slug = "wrong-state"
    exit_code = 62
    sentence = "{subject} is {state}, and {operation} needs it {needed}."
    hint = "{remedy}"
    subject: str
    state: str
    operation: str
    needed: str
    remedy: str = ""


class SameHost(ConflictError):
    """The two sides of a migration are one host."""

    slug = "same-host"
    exit_code = 64
    sentence = "Migration {migration} begins on this very host, and cannot end on it."
    hint = "Name another host."
    migration: str


class NoSuchTarget(ConflictError):
    """No process, cgroup or job of that name."""

    slug = "no-such-target"
    exit_code = 63
    sentence = "There is no {kind} {name}."
    hint = "{remedy}"
    kind: str
    name: str
    remedy: str = ""


class GroupFailed(ConflictError):
    """One member of a group could not, and so none did; carries what its error said."""

    slug = "group-failed"
    exit_code = 65
    sentence = "Group {group} was not {done}, because of job {member}: {reason} {outcome}"
    hint = "{remedy}"
    group: str
    done: str
    member: str
    reason: str
    outcome: str
    remedy: str = ""
    their_slug: str = ""
    their_exit_code: int = 0


class GaveUp(ConflictError):
    """A member of a group did not go on, because another one could not; nobody is told but who asked for the group."""

    slug = "gave-up"
    sentence = "Another member of the group cannot go on."


# ------------------------------------------------------------------------------------------- 90, 130


class UndoError(CkptError):
    """Undoing failed: an operator must look."""

    slug = "undo-failed"
    exit_code = 90
    sentence = "{operation} failed ({cause}), and so did undoing it: {failures}."
    hint = "The workload may be frozen: run 'ckpt recover', then look at it."
    operation: str
    cause: str
    failures: tuple[str, ...]


class Interrupted(CkptError):
    """Ended by the user; everything that was begun has been undone."""

    slug = "interrupted"
    exit_code = 130
    sentence = "{operation} was interrupted; what it had begun was undone."
    operation: str
