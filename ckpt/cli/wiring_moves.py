"""Where the adapters of migrations meet their ports; the rest of wiring.py, and its rules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckpt.cli.progress import Teller
from ckpt.errors import CkptError, Usage
from ckpt.flow.restore import RestorePorts
from ckpt.model.migration_moves import Choice
from ckpt.units import Pid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ckpt.flow.migration_call import MigratePorts
    from ckpt.flow.ports import CheckpointSource
    from ckpt.flow.receive import Reception
    from ckpt.host.migrating.source_side import SourceSide
    from ckpt.host.network.adapter import HostNetworks
    from ckpt.model.migration import Resolution
    from ckpt.model.moves import RoundReport
    from ckpt.model.target import TargetRef
    from ckpt.remote.far_side import FarSide
    from ckpt.store.wire_compress import WireCompressor
    from ckpt.store.wire_seal import WireCipher

from ckpt.cli.wiring import jobs, local_path, open_store, state, target_needs


def restore_ports_from(source: CheckpointSource, place: str) -> RestorePorts:
    """Everything that a restore needs of what did not come out of a store; `place` is where this host's store is.

    Raises:
        CriuMissing: there is no CRIU.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.inodes.ladder import HostInodes  # noqa: PLC0415
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.restorer import CriuRestorer  # noqa: PLC0415
    from ckpt.host.saved_files_back import HostFileWriter  # noqa: PLC0415
    from ckpt.host.volumes.adapter import HostVolumes  # noqa: PLC0415

    return RestorePorts(
        clock=HostClock(),
        operations=JournaledOperations(state()),
        inspector=HostInspector(state()),
        inodes=HostInodes(state(), os.path.abspath(local_path(place))),
        restorer=CriuRestorer(find_criu(), jobs()),
        writer=HostFileWriter(),
        store=source,
        volumes=HostVolumes(state(), jobs()),
    )


def reception(place: str) -> Reception:
    """What takes in the workloads that other hosts send; `place` is where this host's store is."""
    from ckpt.flow.filling import Filling, find_filling  # noqa: PLC0415
    from ckpt.flow.receive import Reception  # noqa: PLC0415
    from ckpt.host.memory_layouts import ImageLayouts  # noqa: PLC0415
    from ckpt.host.migrating.target_side import HostTargetSides  # noqa: PLC0415

    def filling(ref: str, roots: Sequence[Pid]) -> Filling:
        return find_filling(ref, roots, open_store(place, create=False), ImageLayouts())

    return Reception(HostTargetSides(state()), lambda source: restore_ports_from(source, place), filling)


def wire_compressor() -> WireCompressor:
    """What compresses the payloads of messages to other hosts."""
    from ckpt.store.wire_compress import WireCompressor  # noqa: PLC0415

    return WireCompressor()


def wire_cipher(key: bytes) -> WireCipher:
    """What seals with this key what goes to another host beside SSH."""
    from ckpt.store.wire_seal import WireCipher  # noqa: PLC0415

    return WireCipher(key)


def migrate_ports(
    far: FarSide, records: SourceSide, tell: Teller, tell_round: Callable[[RoundReport], None]
) -> MigratePorts:
    """Everything that a migration needs on its source.

    Raises:
        CriuMissing: there is no CRIU.
    """
    from ckpt.cli.counting import counting  # noqa: PLC0415
    from ckpt.flow.migration_call import MigratePorts  # noqa: PLC0415
    from ckpt.flow.snapshot import SnapshotPorts  # noqa: PLC0415
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.dumper import CriuDumper  # noqa: PLC0415
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415
    from ckpt.host.migrating.senders import HostSenders  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.saved_files import HostFileSaver  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415
    from ckpt.host.volumes.adapter import HostVolumes  # noqa: PLC0415

    registry = jobs()
    clock, inspector = HostClock(), HostInspector(state())
    return MigratePorts(
        clock=clock,
        operations=JournaledOperations(state()),
        targets=HostTargets(state(), registry.cgroup_of),
        inspector=inspector,
        saver=HostFileSaver(),
        jobs=registry,
        snapshot=SnapshotPorts(
            clock=clock,
            inspector=inspector,
            dumper=CriuDumper(find_criu(), state()),
            volumes=HostVolumes(state(), registry),
        ),
        needs=target_needs(),
        senders=HostSenders(state()),
        networks=host_networks(),
        records=records,
        far=counting(far, tell),
        own_host=os.uname().nodename,
        tell=tell,
        progress=tell,
        tell_round=tell_round,
    )


def keep_pages(migration: str, reads: int, writes: int) -> str:
    """Bring the pages that follow a workload to this host, until all are there; else gives why that cannot be.

    Args:
        migration: Its id.
        reads: Where the source speaks.
        writes: Where it is answered.

    Raises:
        NoSuchTarget: no such migration comes here.
        OsRefused: what is needed cannot be started.
    """
    from ckpt.host.lazy.keeper import Keeper  # noqa: PLC0415
    from ckpt.host.lazy.places import mark_lazy, socket_in  # noqa: PLC0415
    from ckpt.host.migrations import Migrations  # noqa: PLC0415
    from ckpt.remote.inflow import SILENCE_S  # noqa: PLC0415
    from ckpt.remote.relay import PipeLink  # noqa: PLC0415

    directory = Migrations(state()).directory(migration)
    mark_lazy(directory)
    return Keeper(socket_in(directory), PipeLink(reads, writes), silence_s=SILENCE_S).run()


def host_networks() -> HostNetworks:
    """The networks of this host's jobs."""
    from ckpt.host.network.adapter import HostNetworks  # noqa: PLC0415

    return HostNetworks(state())


def refuse_unknown_rules(names: Sequence[str]) -> None:
    """Nothing, if there are rules of all these names.

    Raises:
        Usage: there is none of one of them.
    """
    if not names:
        return
    from ckpt.host.preflight.needs_table import NEED_RULES  # noqa: PLC0415
    from ckpt.host.preflight.table import RULES  # noqa: PLC0415
    from ckpt.model.needs import UNTRUSTED  # noqa: PLC0415

    known = {*(rule.name for rule in RULES), *(rule.name for rule in NEED_RULES), UNTRUSTED}
    for name in names:
        if name not in known:
            raise Usage(
                problem=f"There is no rule {name}.",
                remedy="'ckpt migrate --dry-run' names those that found something; docs/rules.md and docs/check-host.md "
                "list them all.",
            )


def new_source(place: str, host: str, given: Mapping[str, Any], options: str) -> SourceSide:
    """A migration that begins here; nothing is written down yet."""
    from ckpt.host.migrating.source_side import new_source as begin  # noqa: PLC0415

    return begin(
        state(),
        host=host,
        identity=given["identity"] or "",
        known_hosts=given["known_hosts"] or "",
        remote_ckpt=given["remote_ckpt"] or "",
        store=place,
        options=options,
    )


def known_source(migration: str) -> SourceSide:
    """A migration that has begun here, and is not over.

    Raises:
        NoSuchTarget: there is none of this id.
        ObjectCorrupt: its record cannot be read.
    """
    from ckpt.host.migrating.source_side import known_source as find  # noqa: PLC0415

    return find(state(), migration)


def known_sources() -> tuple[SourceSide, ...]:
    """All migrations away from this host that are not over."""
    from ckpt.host.migrating.source_side import known_sources as find  # noqa: PLC0415

    return find(state())


def known_targets() -> tuple[str, ...]:
    """The ids of all migrations to this host that are not over."""
    from ckpt.host.migrations import Migrations  # noqa: PLC0415

    return tuple(record.id for record in Migrations(state()).targets())


def damaged_migrations() -> tuple[CkptError, ...]:
    """What is wrong with the records of migrations that cannot be read; what was left half removed is removed."""
    from ckpt.host.migrations import Migrations  # noqa: PLC0415

    migrations = Migrations(state())
    migrations.sweep()
    return migrations.damaged()


def settle_target(migration: str, place: str) -> str:
    """Do what this host may do alone with a migration to it; a sentence for people, "" if there was nothing to do.

    Raises:
        Locked: an agent works on it.
        WrongState: it is in doubt.
    """
    from ckpt.flow.receive import settle_alone  # noqa: PLC0415
    from ckpt.host.migrating.target_side import HostTargetSides  # noqa: PLC0415

    with HostTargetSides(state()).open_if_free(migration) as side:
        return settle_alone(side, lambda source: restore_ports_from(source, place))


def decide_migration(migration: str, choice: Choice, place: str) -> str:
    """Do what an operator decides; a sentence for people.

    Raises:
        NoSuchTarget: there is no such migration here.
        WrongState: it cannot be decided so.
    """
    from ckpt.host.migrating.target_side import HostTargetSides  # noqa: PLC0415
    from ckpt.host.migrations import Migrations  # noqa: PLC0415

    if Migrations(state()).read_source(migration) is not None:
        source = known_source(migration)
        with source.lock():
            source.decide(choice)
            source.remove()
        return f"dropped: {choice} was decided"
    with HostTargetSides(state()).open_if_free(migration) as side:
        side.decide(choice)
    done = settle_target(migration, place)
    if choice is Choice.COMMIT:
        with HostTargetSides(state()).open_if_free(migration) as side:
            side.remove()
    return done


def settle_source(source: SourceSide, far: FarSide, ref: TargetRef | None, *, resuming: bool) -> Resolution:
    """Finish or undo a migration from here, by the states of both sides; raises what settle() does."""
    from ckpt.flow.settle_migration import Known, SettlePorts, settle  # noqa: PLC0415
    from ckpt.host.freezer_control import control_of  # noqa: PLC0415
    from ckpt.host.process_table import boot_id  # noqa: PLC0415
    from ckpt.host.recovery import recover_dead  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415

    registry = jobs()

    def kill(cgroup: str) -> None:
        # After a reboot nothing of it runs, and the cgroup may be another's.
        control = control_of(cgroup) if source.record.boot_id == boot_id() else None
        if control is not None:
            control.kill()

    with source.lock():
        record = source.record
        # What its controller left when it died comes first: it may still be frozen.
        recover_dead(state())
        return settle(
            Known(
                host=record.host,
                job=record.job,
                cgroup=record.cgroup,
                ref=ref,
                rebooted=record.boot_id != boot_id(),
            ),
            SettlePorts(
                targets=HostTargets(state(), registry.cgroup_of),
                jobs=registry,
                networks=host_networks(),
                records=source,
                kill=kill,
            ),
            far,
            resuming=resuming,
        )
