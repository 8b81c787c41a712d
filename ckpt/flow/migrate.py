"""Move a workload that runs to another host: the source's side, from the check to the last word.

Rules:
  M1  Nothing is stopped before both sides have said that nothing speaks against it.
  M2  While the workload runs, rounds send its memory; only what has changed since is sent under the freeze.
  M3  CRIU holds the frozen workload until the target holds its copy, whole and durable. Then COMMITTED is written down:
      before, every failure lets the workload run on here; from then on it never runs here again.
  M4  What follows the commit is not interrupted, and what of it fails is told, never undone.
  M5  With --lazy its memory follows when it runs there already: until all of it is there it stays frozen here, and is
      served; where that breaks off, nobody has all of it, and the copy there is ended.
Source: decisions/0013; model/migration.py.
"""

from __future__ import annotations

from ckpt.errors import (
    PeerFailed,
    PeerRefused,
    TransferBroken,
)
from ckpt.flow.migration_call import MigrateCall, MigratePorts
from ckpt.flow.migration_check import look, refuse, resolve_target
from ckpt.flow.moving import Migration
from ckpt.model.findings import Finding
from ckpt.model.migration import SourceState
from ckpt.model.moves import MigrateReport, job_there
from ckpt.units import ByteCount, Nanoseconds


def check_migration(call: MigrateCall, ports: MigratePorts) -> tuple[Finding, ...]:
    """Everything on both hosts that speaks against it, the gravest first; nothing is touched.

    Raises:
        NoSuchTarget, CannotCheckpoint: there is no such target, or it can never be dumped.
        PeerFailed: the other host cannot say.
    """
    return look(call, ports, resolve_target(call, ports)).findings


def migrate(call: MigrateCall, ports: MigratePorts) -> MigrateReport:
    """Move the target to the other host.

    Raises:
        NoSuchTarget, Locked, Usage, CannotMigrate: nothing was touched.
        TransferBroken: the way there broke; the workload runs on here, and the transfer can be resumed.
        CommitUndelivered: it was handed over, and the target could not be told: that must be made good.
        CkptError: else; the workload runs on here, and nothing is left of it there.
    """
    began = ports.clock.stopwatch() if call.began is None else call.began
    target = resolve_target(call, ports)
    with ports.records.lock(), ports.targets.lock(target):
        looked = look(call, ports, target)
        refuse(looked.findings, call, target)
        one = Migration(call, ports, target, looked)
        try:
            one.run()
        except PeerRefused:
            raise
        except PeerFailed as error:
            if one.is_committed or ports.records.state is not SourceState.TRANSFERRING:
                raise
            raise TransferBroken(host=call.host, reason=error.reason, migration=ports.records.id) from error
    running = one.running
    assert running is not None
    return MigrateReport(
        id=ports.records.id,
        job=job_there(target.job, ports.records.id),
        host=call.host,
        pid=running.pid,
        pids=running.pids,
        cgroup=running.cgroup,
        downtime_ns=one.downtime_ns,
        total_ns=Nanoseconds(ports.clock.stopwatch() - began),
        rounds=tuple(one.rounds),
        sent_bytes=ByteCount(ports.far.sent_bytes + one.followed_bytes),
        restore_ns=one.restore_ns,
        dump_ns=one.dump_ns,
        lazy=call.lazy,
        # Under the freeze the same is found once more.
        warnings=tuple(dict.fromkeys((*looked.warnings, *one.warnings, *running.warnings))),
    )
