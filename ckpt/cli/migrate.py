"""`ckpt migrate`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt.cli import wiring, wiring_moves
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.check import as_text
from ckpt.cli.documents import check_document
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.hosts import connected, ssh_options
from ckpt.cli.migrate_report import RoundTeller, migrate_document, migrate_text
from ckpt.cli.parameters import duration_above_zero, target_ref
from ckpt.cli.progress import telling
from ckpt.cli.recover_migrations import outcome
from ckpt.cli.restore_options import inodes_option, pids_option, time_option
from ckpt.flow.migrate import check_migration
from ckpt.flow.migrate import migrate as move
from ckpt.flow.migration_call import MigrateCall, MigratePorts
from ckpt.model.findings import blockers
from ckpt.model.migration import Resolution
from ckpt.units import Nanoseconds

if TYPE_CHECKING:
    from ckpt.cli.progress import Teller
    from ckpt.host.migrating.source_side import SourceSide
    from ckpt.remote.far_side import FarSide

_KEPT: Final = (
    *(
        "name",
        "pid",
        "cgroup",
        "pre_copy",
        "base",
        "lazy",
        "ship",
        "allow",
        "time",
        "inodes",
        "pids",
        "into",
        "freeze_timeout",
        "ssh_only",
    ),
    *("tcp_established", "tcp_close", "shell_job", "external_unix", "ghost_limit"),
)
_CANNOT: Final = 30
_OPEN: Final = "open"


@make_command("migrate", example="ckpt migrate web root@other-host")
@click.argument("words", nargs=-1, metavar="[NAME] [USER@]HOST[:PORT]")
@click.option("--pid", type=click.IntRange(min=1), metavar="N", help="This process and its descendants.")
@click.option("--cgroup", metavar="PATH", help="Every process in this cgroup and below it.")
@click.option(
    "--pre-copy",
    type=click.IntRange(0, 100),
    metavar="N",
    help="At most N rounds that send memory while the workload runs; without, as many as pay.",
)
@click.option(
    "--base",
    default="",
    metavar="REF",
    help="Begin with this checkpoint in the other host's store: memory that is still as it was in it is not sent.",
)
@click.option(
    "--lazy",
    is_flag=True,
    help="Let it run there at once, and send its memory then. If the connection or one of the hosts fails before all of "
    "it is there, the workload is lost.",
)
@click.option(
    "--ship",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="Send this file, or the directory with all files in it, as it is at the freeze; 'open' sends what it "
    "writes to, and what it reads and the other host lacks. May be repeated.",
)
@click.option(
    "--ssh-only", is_flag=True, help="Send everything through SSH, and open no port on the other host."
)
@click.option("--dry-run", is_flag=True, help="Check both hosts, say what is in the way, and stop there.")
@click.option(
    "--allow",
    multiple=True,
    metavar="RULE",
    help="Go on in spite of what this rule finds (docs/rules.md). May be repeated.",
)
@time_option("What the workload's clocks make of the pause, as for 'ckpt restore'.")
@inodes_option("What to do about files that are others there, as for 'ckpt restore'.")
@pids_option("The same pids there, or a PID namespace of its own.")
@click.option("--into", default="", metavar="PATH", help="The cgroup there, instead of one of its own.")
@click.option("--resume", metavar="ID", help="Go on with a migration that broke off, or finish it.")
@dump_parameters
@click.option(
    "--freeze-timeout",
    type=duration_above_zero,
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="Give up, and let it run on here, if a task has not stopped by then.",
)
@ssh_options
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Move TARGET, which runs, to another host: --pid N, --cgroup PATH or a job's NAME.

    Its memory is sent while it runs; it stands still for the last changes, the restore there and the handing over. It
    runs here until the other host holds it, whole; from then on it runs there, and never on both. Ctrl-C before that
    leaves it running here.

    The files that it uses must be there, the same, or be sent with --ship. Its open TCP connections move with
    --tcp-established, if it has a network of its own (ckpt run --net); with --tcp-close they come closed.
    """
    wiring.require_root("ckpt migrate")
    if given["resume"] is not None:
        if given["words"] or given["pid"] or given["cgroup"] or given["dry_run"]:
            raise usage("--resume ID stands alone: the migration knows its target and its host.")
        return _resume(call, given["resume"], given)
    host = _take_host(given)
    if "" in given["ship"]:
        raise usage("--ship needs a path, or 'open'.")
    given["ship"] = tuple(path if path == _OPEN else os.path.realpath(path) for path in given["ship"])
    wiring_moves.refuse_unknown_rules(given["allow"])
    source = wiring_moves.new_source(
        call.store, host, given, json.dumps({name: given[name] for name in _KEPT})
    )
    return _migrate(call, given, host, source)


def _take_host(given: dict[str, Any]) -> str:
    """The host among the words; the name of a job, if there is one, becomes `name`."""
    words = given.pop("words")
    named = given["pid"] is not None or given["cgroup"] is not None
    if len(words) != (1 if named else 2):
        raise usage("Give exactly one target, --pid N, --cgroup PATH or a job's NAME, and then the host.")
    given["name"] = None if named else words[0]
    return str(words[-1])


def _migrate(
    call: Call, given: dict[str, Any], host: str, source: SourceSide, *, resumed: bool = False
) -> int:
    wanted = _wanted(given, host, resumed=resumed)
    output = call.output
    if wanted.lazy:
        if wanted.pre_copy is not None:
            raise usage("--lazy sends the memory after the move, --pre-copy before it: choose one.")
        if wanted.base:
            raise usage(
                "--lazy sends all memory after the move, --base spares what is sent before: choose one."
            )
        output.warn(
            f"with --lazy the workload is lost if {host}, this host or the connection fails before all memory is there"
        )
    with telling(output) as tell, _ports(call, given, host, source, tell) as (ports, far):
        if given["dry_run"]:
            findings = check_migration(wanted, ports)
            grave = tuple(each for each in blockers(findings) if each.rule not in wanted.allow)
            output.result(
                check_document(findings) | {"ok": not grave}, as_text(findings), brief=as_text(grave)
            )
            return _CANNOT if grave else 0
        if not given["ssh_only"]:
            output.note(_go_direct(far))
        report = move(wanted, ports)
    for warning in report.warnings:
        output.warn(warning)
    output.result(migrate_document(report), migrate_text(report), brief=report.id)
    return 0


def _go_direct(far: FarSide) -> str:
    """Leave SSH, if that can be; gives what to say of it."""
    if reason := far.go_direct(wiring_moves.wire_cipher):
        return f"everything goes through SSH, as there is no direct connection: {reason}"
    return "what is sent goes over a direct connection, sealed with AES-256-GCM"


def _wanted(given: dict[str, Any], host: str, *, resumed: bool) -> MigrateCall:
    ship = tuple(given["ship"])
    return MigrateCall(
        target=target_ref(given["pid"], given["cgroup"], given["name"]),
        host=host,
        options=dump_options(given),
        freeze_timeout=Nanoseconds(given["freeze_timeout"]),
        pre_copy=given["pre_copy"],
        ship=tuple(path for path in ship if path != _OPEN),
        ship_open=_OPEN in ship,
        allow=tuple(given["allow"]),
        time=given["time"],
        inodes=given["inodes"],
        pids=given["pids"],
        cgroup=given["into"],
        resumed=resumed,
        lazy=given["lazy"],
        began=wiring.stopwatch(),
        base=given["base"],
    )


def _resume(call: Call, migration: str, given: dict[str, Any]) -> int:
    source = wiring_moves.known_source(migration)
    record = source.record
    there = {
        "identity": given["identity"] or record.identity,
        "known_hosts": given["known_hosts"] or record.known_hosts,
        "remote_ckpt": given["remote_ckpt"] or record.remote_ckpt,
    }
    kept = json.loads(record.options)
    kept |= {**there, "dry_run": False, "ssh_only": given["ssh_only"] or kept["ssh_only"]}
    kept |= {"ship": tuple(kept["ship"]), "allow": tuple(kept["allow"])}
    with telling(call.output) as tell, _ports(call, kept, record.host, source, tell) as (_, far):
        ref = target_ref(kept["pid"], kept["cgroup"], kept["name"])
        runs = bool(far.state().pid)
        resolution = wiring_moves.settle_source(source, far, ref, resuming=True)
    if resolution is Resolution.CONTINUE:
        return _migrate(call, kept, record.host, source, resumed=True)
    call.output.result(
        {
            "migration": migration,
            "host": record.host,
            "job": record.job or None,
            "resolution": str(resolution),
        },
        outcome(resolution, is_lazy=bool(kept.get("lazy")), runs=runs),
    )
    return 0


@contextmanager
def _ports(
    call: Call, given: dict[str, Any], host: str, source: SourceSide, tell: Teller
) -> Iterator[tuple[MigratePorts, FarSide]]:
    from ckpt.remote.far_side import FarSide  # noqa: PLC0415

    tell(f"connecting to {host}")
    with connected(call, host, given) as peer:
        far = FarSide(peer, wiring_moves.wire_compressor(), source.id)
        yield wiring_moves.migrate_ports(far, source, tell, RoundTeller(call.output, tell)), far
