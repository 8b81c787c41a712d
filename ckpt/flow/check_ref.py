"""Say beforehand whether a checkpoint, or a workload that runs, can be restored on a host: this one or another.

Rule: of the images only metadata is fetched; nothing is started, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ckpt.errors import Untrusted
from ckpt.flow.check import CheckPorts
from ckpt.flow.files import check_records
from ckpt.flow.ports import ImageNeedsReader, Judge, Store, TargetNeedsReader
from ckpt.model.checkpoint import DumpOptions, ImageSet
from ckpt.model.findings import Finding, Severity
from ckpt.model.needs import UNTRUSTED, Needs, needs_of, without_connections
from ckpt.model.target import TargetRef
from ckpt.units import CheckpointId, JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRefCall:
    """What the user asked for, as it would be given to a restore. `job` None takes the checkpoint's own.

    `elsewhere` says that another host is meant, whose store must take the checkpoint first.
    """

    ref: str
    job: JobName | None = None
    new_pids: bool = False
    elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRefPorts:
    """The outside things that a check of a checkpoint needs.

    `signers` gives the public keys that have signed a checkpoint, None where nobody must.
    """

    store: Store
    images: ImageNeedsReader
    judge: Judge
    signers: Callable[[CheckpointId], tuple[str, ...] | None]


def check_ref(call: CheckRefCall, ports: CheckRefPorts) -> tuple[Finding, ...]:
    """Everything that speaks against a restore of a checkpoint on the host of `ports.judge`; the gravest first.

    Raises:
        ObjectMissing, ObjectCorrupt: the checkpoint is not there, or its metadata is not whole.
        PeerFailed: the other host cannot say.
    """
    checkpoint_id = ports.store.resolve(call.ref)
    untrusted = () if call.elsewhere else _untrusted(checkpoint_id, ports.store)
    checkpoint = ports.store.load(checkpoint_id).checkpoint
    check_records(checkpoint_id, checkpoint)
    needs = needs_of(
        checkpoint_id,
        checkpoint,
        [ports.images.read(_filling(checkpoint_id, images, ports)) for images in checkpoint.image_sets],
        job=call.job,
        new_pids=call.new_pids,
    )
    if call.elsewhere:
        needs = replace(_received(needs), signers=ports.signers(checkpoint_id))
    return (*untrusted, *ports.judge.judge(needs))


def check_target_elsewhere(
    ref: TargetRef, options: DumpOptions, ports: CheckPorts, reader: TargetNeedsReader, judge: Judge
) -> tuple[Finding, ...]:
    """Everything that speaks against a restore of a workload that runs here, dumped with these options, on the host of
    `judge`.

    Raises:
        NoSuchTarget: there is no such target, or it has no process.
        CannotCheckpoint: it can never be dumped.
        PeerFailed: the other host cannot say.
    """
    needs = reader.needs_of(ports.targets.resolve(ref))
    return judge.judge(_received(without_connections(needs) if options.tcp_close else needs))


def _received(needs: Needs) -> Needs:
    """The same, where the store must take it in first: every byte of it, in the worst case."""
    return replace(needs, store_bytes=needs.staging_bytes)


def _filling(checkpoint_id: CheckpointId, images: ImageSet, ports: CheckRefPorts) -> Callable[[str], None]:
    wanted = frozenset(ports.images.wanted(file.name for file in images.files))

    def fill(directory: str) -> None:
        for file in images.files:
            if file.name in wanted:
                ports.store.fetch(checkpoint_id, file, f"{directory}/{file.name}")

    return fill


def _untrusted(checkpoint_id: CheckpointId, store: Store) -> tuple[Finding, ...]:
    try:
        store.check_trust(checkpoint_id)
    except Untrusted as error:
        finding = Finding(
            rule=UNTRUSTED,
            severity=Severity.BLOCKER,
            pid=None,
            name="",
            subject=checkpoint_id[:12],
            message=error.message.rstrip("."),
            remedy=error.advice,
            option="",
        )
        return (finding,)
    return ()
