"""A checkpoint in which every field is used, and others made from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

from ckpt.model.checkpoint import (
    AddressRun,
    CarriedFile,
    Checkpoint,
    DumpOptions,
    DumpStatistics,
    ExtendedAttribute,
    GroupInstant,
    HostFacts,
    ImageSet,
    SavedFile,
    StoredFile,
    Volume,
)
from ckpt.model.clocks import Clocks, PendingTimer, PendingWait, TimeOffsets, TimerKind
from ckpt.model.inodes import DigestState, FileKind, FileSystem, Identity, InodeRecord, Role, RoleKind
from ckpt.model.network import LinkKind, Network, NetworkAddress, NetworkRoute
from ckpt.model.settings import CpuRange, ProcessSettings, ThreadSettings
from ckpt.model.workload import (
    CgroupRecord,
    CgroupSetting,
    ExternalMount,
    Namespace,
    OutsideFile,
    OutsideKind,
    Process,
    TargetKind,
    Tree,
    Workload,
)
from ckpt.store.store import Store
from ckpt.store.writer import Writer
from ckpt.units import (
    ByteCount,
    CheckpointId,
    DeviceNumber,
    Digest,
    InodeNumber,
    JobName,
    Nanoseconds,
    Pid,
)

CREATED = Nanoseconds(1_800_000_000_123_456_789)

HOST = HostFacts(
    hostname="forge",
    kernel="6.18.44",
    architecture="x86_64",
    distribution="Debian GNU/Linux 13 (trixie)",
    cpu_model="A CPU",
    cpu_flags=("fpu", "sse2", "avx2"),
    libc="glibc 2.41",
    criu_version="4.2.1",
    ckpt_version="0.1.0",
)

CLOCKS = Clocks(
    realtime_ns=CREATED,
    monotonic_ns=Nanoseconds(5_000_000_000_001),
    boottime_ns=Nanoseconds(6_000_000_000_002),
    boot_id="5b4b1c3a-0000-4000-8000-000000000000",
    time_zone="Europe/Berlin",
    clocksource="tsc",
)

TIMER = PendingTimer(
    pid=Pid(4242),
    kind=TimerKind.TIMERFD,
    clock="CLOCK_MONOTONIC",
    value_ns=Nanoseconds(750_000_000),
    interval_ns=Nanoseconds(1_000_000_000),
    absolute=True,
)

NETWORK = Network(
    namespace=InodeNumber(4026532281),
    kind=LinkKind.BRIDGE,
    parent="br0",
    interface="eth0",
    mac="02:00:00:00:00:05",
    mtu=1500,
    addresses=(
        NetworkAddress(interface="lo", address="10.1.1.1/32"),
        NetworkAddress(interface="eth0", address="10.0.0.5/24"),
        NetworkAddress(interface="eth0", address="fd00::5/64"),
    ),
    routes=(
        NetworkRoute(
            destination="0.0.0.0/0",
            gateway="10.0.0.1",
            interface="eth0",
            source="10.0.0.5",
            metric=100,
            table=254,
            on_link=True,
        ),
    ),
)
WAIT = PendingWait(
    pid=Pid(4242),
    thread=Pid(4243),
    call="clock_nanosleep",
    clock="CLOCK_MONOTONIC",
    left_ns=Nanoseconds(1_250_000_000),
)

SETTINGS = ProcessSettings(
    pid=Pid(4242),
    coredump_filter=0x7F,
    autogroup_nice=-5,
    threads=(
        ThreadSettings(thread=Pid(4242), cpus=(), io_priority=0, timer_slack_ns=Nanoseconds(50_000)),
        ThreadSettings(
            thread=Pid(4243),
            cpus=(CpuRange(first=0, last=3), CpuRange(first=8, last=8)),
            io_priority=3 << 13,
            timer_slack_ns=None,
        ),
    ),
)

OPTIONS = DumpOptions(
    tcp_established=True,
    file_locks=True,
    link_remap=True,
    shell_job=True,
    external_unix=True,
    ghost_limit_bytes=ByteCount(1 << 20),
)

STATISTICS = DumpStatistics(
    freezing_ns=Nanoseconds(400_000),
    frozen_ns=Nanoseconds(18_000_000),
    memory_dump_ns=Nanoseconds(6_000_000),
    memory_write_ns=Nanoseconds(3_000_000),
    pages_scanned=900,
    pages_written=61,
)

INODE = InodeRecord(
    path="/usr/bin/sleep",
    kind=FileKind.REGULAR,
    device=DeviceNumber(65024),
    inode=InodeNumber(393258),
    seen=Identity(device=DeviceNumber(0xFE00), inode=InodeNumber(1234567)),
    generation=2718281828,
    size_bytes=ByteCount(35664),
    mode=0o100755,
    uid=0,
    gid=0,
    mtime_ns=Nanoseconds(1_700_000_000_000_000_001),
    ctime_ns=Nanoseconds(1_700_000_000_000_000_002),
    btime_ns=Nanoseconds(1_700_000_000_000_000_000),
    links=1,
    deleted=False,
    filesystem=FileSystem(
        type="ext4",
        uuid="11111111-2222-3333-4444-555555555555",
        fsid=0x1122334455667788,
        source="/dev/vda",
        mountpoint="/",
        mount_id=27,
    ),
    build_id="b3eb6b0bd4e6bdbd0b0e8f1e1e0f4b9e6f3a1d2c",
    handle="1:aa0006008fbc7ea2",
    digest=Digest("c0" * 32),
    digest_state=DigestState.STABLE,
    roles=(
        Role(pid=Pid(4242), kind=RoleKind.EXE, detail=""),
        Role(pid=Pid(4242), kind=RoleKind.MAP, detail="55d0c0000000-55d0c0006000"),
    ),
)

WORKLOAD = Workload(
    kind=TargetKind.CGROUP,
    cgroup="/sys/fs/cgroup/app",
    trees=(
        Tree(
            root=Pid(4242),
            processes=(
                Process(
                    pid=Pid(4242),
                    pid_inside=Pid(1),
                    parent=Pid(1),
                    name="sleep",
                    state="S",
                    threads=(Pid(4242), Pid(4243)),
                    command_line=("sleep", "1000", "na\u00efve \udcff"),
                    uid=0,
                    gid=0,
                    capabilities=0x1FFFFFFFFFF,
                    seccomp=0,
                    cgroup="inner",
                ),
            ),
            namespaces=(Namespace(kind="pid", inode=4026532200, own=True),),
            time_offsets=TimeOffsets(monotonic_ns=Nanoseconds(-5), boottime_ns=Nanoseconds(7)),
        ),
    ),
    cgroups=(
        CgroupRecord(
            hierarchy="unified",
            path="/app",
            settings=(CgroupSetting(name="memory.max", value="max"),),
            members=(Pid(4242),),
        ),
    ),
    external_mounts=(
        ExternalMount(key="/dev/shm", mountpoint="/dev/shm", filesystem="tmpfs", source="tmpfs", root="/"),
    ),
    outside_files=(OutsideFile(kind=OutsideKind.PIPE, key="pipe:[4242]", pid=Pid(4242), fd=1, writes=True),),
)


def add(
    writer: Writer, files: Mapping[str, bytes], addresses: Mapping[str, tuple[AddressRun, ...]] | None = None
) -> list[StoredFile]:
    """Give files to a writer; those that are named in `addresses` with these."""
    return [
        writer.add_stream(
            io.BytesIO(content).read,
            name=name,
            size_bytes=len(content),
            mode=0o600,
            addresses=(addresses or {}).get(name, ()),
        )
        for name, content in files.items()
    ]


def write(
    store: Store,
    files: Mapping[str, bytes],
    *,
    parent: CheckpointId | None = None,
    created_ns: int = 1,
    job: str | None = "web",
    addresses: Mapping[str, tuple[AddressRun, ...]] | None = None,
) -> tuple[CheckpointId, int]:
    """Write a checkpoint with these files; its id, and how many bytes of them were new."""
    with store.writer(parent) as writer:
        stored = add(writer, files, addresses)
        return writer.commit(a_checkpoint(*stored, created_ns=created_ns, job=job)), writer.new_bytes


def read(store: Store, checkpoint: CheckpointId) -> dict[str, bytes]:
    """All files of a checkpoint."""
    return {
        file.name: b"".join(store.stream(checkpoint, file))
        for file in store.load(checkpoint).checkpoint.files
    }


def a_checkpoint(
    *files: StoredFile,
    job: str | None = "web",
    created_ns: int = CREATED,
    carried: StoredFile | None = None,
    message: str = "before the upgrade",
    saved: StoredFile | None = None,
    volume: StoredFile | None = None,
    group: GroupInstant | None = None,
) -> Checkpoint:
    """A checkpoint of one tree with these image files."""
    return Checkpoint(
        job=None if job is None else JobName(job),
        message=message,
        created_ns=Nanoseconds(created_ns),
        parent=CheckpointId("de" * 32),
        frozen_ns=Nanoseconds(21_000_000),
        dump_ns=Nanoseconds(60_000_000),
        host=HOST,
        clocks=CLOCKS,
        timers=(TIMER,),
        waits=(WAIT,),
        options=OPTIONS,
        workload=WORKLOAD,
        image_sets=(ImageSet(root=Pid(4242), files=files, statistics=STATISTICS),),
        inodes=(
            INODE,
            replace(
                INODE,
                path="/tmp/gone",
                seen=None,
                deleted=True,
                generation=None,
                btime_ns=None,
                build_id=None,
                handle=None,
                digest=None,
                digest_state=DigestState.UNREADABLE,
            ),
        ),
        carried_files=(
            ()
            if carried is None
            else (
                CarriedFile(
                    path="/dev/shm/ring",
                    temporary=True,
                    handle="1:aa0006008fbc7ea2",
                    uid=0,
                    gid=0,
                    mtime_ns=Nanoseconds(-1),
                    content=carried,
                ),
            )
        ),
        saved_files=(
            ()
            if saved is None
            else (
                SavedFile(
                    path="/srv/state.db",
                    mode=0o100640,
                    uid=0,
                    gid=0,
                    mtime_ns=Nanoseconds(1_700_000_000_000_000_003),
                    content=saved,
                    attributes=(ExtendedAttribute(name="user.origin", value="6c6162"),),
                ),
            )
        ),
        saved_directories=() if saved is None else ("/srv",),
        volumes=(
            ()
            if volume is None
            else (
                Volume(
                    mountpoint="/srv/volume", filesystem="ext4", device=DeviceNumber(0x7B00), content=volume
                ),
            )
        ),
        settings=(SETTINGS,),
        networks=(NETWORK,),
        group=group,
    )
