"""The part of `ckpt check` that speaks of a checkpoint, or of another host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, usage
from ckpt.cli.dump_options import dump_options
from ckpt.cli.hosts import connected, host_option, refuse_without_host
from ckpt.cli.parameters import job_name, target_ref
from ckpt.cli.restore_options import pids_option
from ckpt.codec.names import refuse_label
from ckpt.errors import NoSuchTarget, ObjectMissing
from ckpt.flow.check_ref import CheckRefCall, CheckRefPorts, check_ref, check_target_elsewhere
from ckpt.flow.ports import Judge
from ckpt.model.findings import Finding
from ckpt.model.target import TargetRef
from ckpt.units import JobName


def checked_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what may be checked, a TARGET or a REF, where, and as what it would be restored."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return host_option(function)


def what_is_meant(given: dict[str, Any]) -> TargetRef | str:
    """The target, or the REF of a checkpoint: a NAME is a target if a job of this name runs, else a REF.

    Raises:
        UsageError: nothing was named, or several things; or an option does not belong to what was named.
    """
    refuse_without_host(given, given["host"])
    named = [
        each
        for each in (given["pid"], given["cgroup"], given["name"], given["checkpoint"])
        if each is not None
    ]
    if len(named) != 1:
        raise usage("Give exactly one: --pid N, --cgroup PATH, a job's NAME, or a checkpoint's REF.")
    name = given["name"]
    meant: TargetRef | str
    if given["checkpoint"] is not None:
        meant = str(given["checkpoint"])
    elif name is not None and (refuse_label(name) or not wiring.runs(JobName(name))):
        meant = str(name)
    else:
        meant = target_ref(given["pid"], given["cgroup"], name)
    if isinstance(meant, TargetRef) and (given["pids"] == "new" or given["as_job"] is not None):
        raise usage("--pids and --name are for a checkpoint, and a target that runs was named.")
    return meant


def check_checkpoint(call: Call, ref: str, given: dict[str, Any]) -> tuple[Finding, ...]:
    """What speaks against a restore of a checkpoint, here or on the host that `given` names; the gravest first.

    Raises:
        NoSuchTarget: it was named as a job may be, and is neither a job that runs nor a checkpoint.
        StoreError: it is not there, or not whole.
        RemoteError: the other host cannot be asked.
    """
    if given["checkpoint"] is None and not refuse_label(ref):
        _refuse_unknown(call, ref)
    wanted = CheckRefCall(
        ref=ref, job=given["as_job"], new_pids=given["pids"] == "new", elsewhere=given["host"] is not None
    )
    if given["host"] is None:
        return check_ref(wanted, _ports(call, wiring.judge(call.store)))
    with connected(call, given["host"], given) as peer:
        return check_ref(wanted, _ports(call, peer))


def check_target_on_host(call: Call, target: TargetRef, given: dict[str, Any]) -> tuple[Finding, ...]:
    """What speaks against bringing a workload that runs here to the host that `given` names; the gravest first.

    Raises:
        NoSuchTarget, CannotCheckpoint: there is none, or it can never be dumped.
        RemoteError: the other host cannot be asked.
    """
    with connected(call, given["host"], given) as peer:
        return check_target_elsewhere(
            target, dump_options(given), wiring.check_ports(), wiring.target_needs(), peer
        )


def _refuse_unknown(call: Call, name: str) -> None:
    with suppress(ObjectMissing):
        if wiring.is_there(call.store):
            wiring.open_store(call.store, create=False).resolve(name)
            return
    raise NoSuchTarget(
        kind="job that runs, and no checkpoint,",
        name=name,
        remedy="'ckpt ps' shows the jobs, and 'ckpt list' the checkpoints.",
    )


def _ports(call: Call, judge: Judge) -> CheckRefPorts:
    store = wiring.open_store(call.store, create=False)
    return CheckRefPorts(
        store=store,
        images=wiring.image_needs(),
        judge=judge,
        signers=lambda each: wiring.signers_of(store, each),
    )


_OPTIONS = (
    click.argument("name", required=False, metavar="[NAME|REF]", shell_complete=suggestions.refs),
    click.option("--pid", type=click.IntRange(min=1), metavar="N", help="This process and its descendants."),
    click.option("--cgroup", metavar="PATH", help="Every process in this cgroup and below it."),
    click.option(
        "--checkpoint",
        metavar="REF",
        help="This checkpoint, also where a job of the same name runs.",
        shell_complete=suggestions.refs,
    ),
    pids_option("As for a restore of a checkpoint."),
    click.option(
        "--name",
        "as_job",
        type=job_name,
        metavar="JOB",
        help="As for a restore of a checkpoint with this name.",
    ),
)
