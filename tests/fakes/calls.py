"""Calls and ports for the scenario tests."""

from __future__ import annotations

from fakes import world as fake

from ckpt.flow.dump import DumpCall, DumpPorts, dump
from ckpt.flow.restore import RestoreCall, RestorePorts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import FilesPolicy, InodePolicy
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind, Tree
from ckpt.units import SECOND, Nanoseconds


def dumped_world(trees: tuple[Tree, ...] | None = None, with_files: tuple[str, ...] = ()) -> fake.World:
    """A world whose store holds one checkpoint of the job "web", with an empty journal."""
    world = fake.World() if trees is None else fake.World(trees=trees)
    dump(
        DumpCall(
            target=TargetRef(kind=TargetKind.JOB, name="web"),
            job=None,
            tags=(),
            message="",
            stop=True,
            options=DumpOptions(),
            freeze_timeout=Nanoseconds(10 * SECOND),
            with_files=with_files,
        ),
        dump_ports(world),
    )
    world.journal.clear()
    return world


def dump_ports(world: fake.World) -> DumpPorts:
    return DumpPorts(
        clock=fake.FakeClock(world),
        operations=fake.FakeOperations(world),
        targets=fake.FakeTargets(world),
        inspector=fake.FakeInspector(world),
        inodes=fake.FakeInodes(world),
        dumper=fake.FakeDumper(world),
        saver=fake.FakeSaver(world),
        store=fake.FakeStore(world),
        jobs=fake.FakeJobs(world),
        volumes=fake.FakeVolumes(world),
        networks=fake.FakeNetworks(world),
    )


def restore_call(
    *, inodes: InodePolicy = InodePolicy.KEEP, new_pids: bool = False, files: FilesPolicy | None = None
) -> RestoreCall:
    return RestoreCall(
        ref="web@latest",
        job=None,
        time=TimePolicy.SUSPEND,
        inodes=inodes,
        new_pids=new_pids,
        cgroup="",
        files=files,
    )


def restore_ports(world: fake.World) -> RestorePorts:
    return RestorePorts(
        clock=fake.FakeClock(world),
        operations=fake.FakeOperations(world),
        inspector=fake.FakeInspector(world),
        inodes=fake.FakeInodes(world),
        restorer=fake.FakeRestorer(world),
        writer=fake.FakeFileWriter(world),
        store=fake.FakeStore(world),
        volumes=fake.FakeVolumes(world),
    )
