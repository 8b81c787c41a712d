"""The virtual layer over running programs: what they see, compared with what one without a layer sees."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.cgroups import Cgroup, unified_mount
from harness.layers import Layer, Program, compile_raw_stats, of, reference
from harness.pauses import Pauses
from harness.traces import SESSION
from harness.waiting import await_condition

from ckpt.errors import OsRefused
from ckpt.host import ptrace
from ckpt.host.virtual import registry
from ckpt.host.virtual.injection import layers_of
from ckpt.host.virtual.server import VirtualServer
from ckpt.host.virtual.table import IdentityTable
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing and seccomp without no_new_privs need root"),
    pytest.mark.skipif(not ptrace.supported(), reason="the registers of this machine are not known"),
]

NOBODY = 65534
AT_FDCWD = -100
SHOWN = Identity(device=DeviceNumber(os.makedev(0x123, 0x45678)), inode=InodeNumber(0xFEDCBA9876543))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the program, linked both ways."""
    folder = tmp_path_factory.mktemp("programs")
    compile_raw_stats(folder)
    return folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may look into, with the files that the table is about."""
    with tempfile.TemporaryDirectory(prefix="ckpt-layer-") as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "work"
        folder.mkdir()
        for each in ("moved", "other", "twin", "untouched"):
            (folder / each).write_text(each)
        (folder / "folder").mkdir()
        (folder / "folder/inside").write_text("inside")
        (folder / "private").mkdir(mode=0o700)
        (folder / "private/moved").write_text("private")
        os.symlink(folder / "moved", folder / "link")
        os.symlink("../moved", folder / "folder/up")
        os.symlink("folder", folder / "way")
        os.symlink("circle", folder / "circle")
        os.symlink("/proc/self/fd/3", folder / "descriptor")
        yield folder


@pytest.fixture
def start(programs: Path, folder: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs, and ends them."""
    with ExitStack() as running:

        def start(name: str = "dynamic", *, within: Sequence[str] = ()) -> Program:
            program = Program(programs / name, folder, within=within)
            running.callback(program.end)
            return program

        yield start


@pytest.fixture
def new_layer(tmp_path: Path) -> Iterator[Callable[[IdentityTable], Layer]]:
    """Makes layers, and ends their supervisors."""
    with ExitStack() as running:

        def new_layer(table: IdentityTable) -> Layer:
            layer = Layer(tmp_path / "state", table)
            running.callback(layer.server.stop)
            return layer

        yield new_layer


@pytest.fixture
def table(folder: Path) -> IdentityTable:
    """`moved` shows what nobody has, `twin` what `other` really has; links and folders are files too."""
    device = folder.stat().st_dev
    pairs = [(of(folder / "moved"), SHOWN), (of(folder / "twin"), of(folder / "other"))]
    names = ("folder", "link", "folder/inside", "private/moved")
    pairs += (
        (of(folder / name), Identity(device=DeviceNumber(device), inode=InodeNumber((1 << 60) + place)))
        for place, name in enumerate(names)
    )
    return IdentityTable.from_pairs(pairs)


def shown(answer: str, table: IdentityTable) -> str:
    """The answer of a program without a layer, with the numbers that the table has for it."""
    error, _, content = answer.partition(" ")
    found = bytearray.fromhex(content)
    if len(found) == 144:
        identity = Identity(
            device=DeviceNumber(int.from_bytes(found[:8], "little")),
            inode=InodeNumber(int.from_bytes(found[8:16], "little")),
        )
        seen = table.shown(identity)
        struct.pack_into("<QQ", found, 0, seen.device, seen.inode)
    elif found:
        (inode,) = struct.unpack_from("<Q", found, 0x20)
        device = os.makedev(*struct.unpack_from("<II", found, 0x88))
        seen = table.shown(Identity(device=DeviceNumber(device), inode=InodeNumber(inode)))
        struct.pack_into("<Q", found, 0x20, seen.inode)
        struct.pack_into("<II", found, 0x88, os.major(seen.device), os.minor(seen.device))
    return f"{error} {found.hex()}".strip()


def questions(folder: Path) -> list[str]:
    """Every way to name a file, by every call; and what the kernel refuses."""
    names = [
        *("moved", "link", "other", "twin", "untouched", "folder", "folder/", "link/", "moved/", "moved/x"),
        *("folder/../moved", "folder/up", "way/inside", "way", "way/", "./way/../link", "circle", "missing"),
        *(
            "private/moved",
            "descriptor",
            "/proc/self/cwd/moved",
            "/proc/self/exe",
            "/proc/1/ns/mnt",
            "x" * 300,
        ),
        *(
            "/proc/self/fd/3",
            "/proc/thread-self/fd/3",
            "/proc/self/fd/4/inside",
            "/proc/self/fd/6",
            "/dev/fd/3",
        ),
        *(
            "/dev/fd/4/../moved",
            "/proc/self/fd/4/up",
            "/proc/self/fd/99",
            "/proc/self/root/etc/passwd",
            "/proc/self/cwd",
        ),
        *(
            "/",
            "/..",
            ".",
            "..",
            "/etc/passwd",
            "/proc/mounts",
            "/proc/self",
            "y/" * 2040 + "yyyyyyyyyyyyyyyyyyyy",
        ),
        *("NULL", "BAD"),
    ]
    names += [
        str(folder / name) for name in ("moved", "link", "folder/up", "folder//./../twin", "private/moved")
    ]
    asked = [f"{call} 0 0 0 {name}" for call in ("stat", "lstat") for name in names]
    asked += [f"fstatat {AT_FDCWD} {flags} 0 {name}" for flags in (0, 0x100, 0x800) for name in names]
    asked += [f"statx {AT_FDCWD} {flags} 0xfff {name}" for flags in (0, 0x100) for name in names]
    asked += [f"fstat {fd} 0 0 x" for fd in (3, 4, 6, 7, 99, -1, AT_FDCWD)]
    # sscanf needs a path: that of no characters is what AT_EMPTY_PATH is for, and NULL on newer kernels.
    asked += [f"fstatat {fd} 0x1000 0 NULL" for fd in (3, 4, 6, 7, 99, AT_FDCWD)]
    asked += [
        f"fstatat {fd} {flags} 0 " for fd in (3, 4, 6, 7, 99, AT_FDCWD) for flags in (0, 0x1000, 0x1100)
    ]
    asked += [f"statx {fd} {flags} 0x17ff " for fd in (3, 4, 6, 7, AT_FDCWD) for flags in (0, 0x1000, 0x3000)]
    asked += [f"statx {AT_FDCWD} {flags} 0xfff moved" for flags in (0x2000, 0x4000, 0x6000, 0x800, 1)]
    asked += [f"statx {AT_FDCWD} 0 {mask} moved" for mask in (0, 1, 0x100, 0x7FF, 0x17FF, 0x4FFF, 1 << 31)]
    asked += [
        f"fstatat {fd} {flags} 0 {name}"
        for fd in (4, 3, 99)
        for flags in (0, 0x100)
        for name in ("inside", "up")
    ]
    asked += [
        f"fstatat 5 0 0 {name}" for name in ("self/fd/3", "self/cwd/moved", "self/exe", "thread-self/fd/4/up")
    ]
    return [*asked, "fstatat -100 2 0 moved"]


def test_a_covered_program_sees_the_table_and_everything_else_as_it_is(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    covered, plain = start(), start()
    asked = questions(folder)
    for line in asked:  # reading a link may change its access time, once
        covered.ask(line)
    before = [shown(covered.ask(line), table) for line in asked]
    new_layer(table).cover(covered)
    wrong = [line for line, expected in zip(asked, before, strict=True) if covered.ask(line) != expected]
    assert not wrong, "\n".join(wrong)
    assert covered.identity("stat 0 0 0 moved") == SHOWN
    assert covered.identity("stat 0 0 0 twin") == of(folder / "other")
    assert covered.identity("stat 0 0 0 other") == of(folder / "twin")
    assert "NoNewPrivs:\t0" in Path(f"/proc/{covered.pid}/status").read_text()
    assert sorted(os.listdir(f"/proc/{covered.pid}/fd")) == sorted(os.listdir(f"/proc/{plain.pid}/fd"))


def test_a_program_without_rights_learns_no_more_than_the_kernel_tells_it(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    covered, plain = start(), start()
    new_layer(table).cover(covered)
    assert covered.ask(f"become {NOBODY}") == plain.ask(f"become {NOBODY}") == "0"
    # What lies in /proc/PID is another file for each of the two.
    asked = [line for line in questions(folder) if not re.search("proc|self|/dev/fd|descriptor", line)]
    wrong = [line for line in asked if covered.ask(line) != shown(plain.ask(line), table)]
    assert not wrong, "\n".join(wrong)
    assert covered.identity("stat 0 0 0 private/moved") == 13
    assert covered.identity("stat 0 0 0 /proc/self/fd/3") == SHOWN


def test_a_program_that_had_no_rights_before_is_covered_too(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered = start()
    assert covered.ask(f"become {NOBODY}") == "0"
    new_layer(table).cover(covered)
    assert covered.identity("stat 0 0 0 moved") == SHOWN


def test_memory_that_cannot_take_the_answer_gives_the_kernels_error(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered, plain = start(), start()
    new_layer(table).cover(covered)
    assert covered.ask("badout 0 0 0 moved") == plain.ask("badout 0 0 0 moved") == "14"
    for program in (covered, plain):
        assert program.ask("edge 0 0 0 moved") == "14"
    assert covered.hear() == shown(plain.hear(), table)


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_children_and_what_they_execute_are_covered(
    start: Callable[..., Program],
    new_layer: Callable[..., Layer],
    table: IdentityTable,
    programs: Path,
    name: str,
) -> None:
    covered = start(name)
    assert covered.ask("thread") == "0"
    layer = new_layer(table)
    layer.cover(covered)
    assert covered.identity("fstat 3 0 0 x") == SHOWN
    child = int(covered.ask("fork"))
    assert covered.identity("stat 0 0 0 moved") == SHOWN
    covered.send(f"exec 0 0 0 {programs / 'static'}")
    assert covered.identity("stat 0 0 0 moved") == SHOWN
    assert covered.identity("fstat 3 0 0 x") == SHOWN
    assert registry.table_for(str(Path(layer.place.directory).parents[1]), [reference(child)]) == table


def test_paths_mean_what_they_mean_in_the_programs_root_and_mounts(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    covered, plain = start(), start()
    os.symlink("/inside", folder / "folder/absolute")
    new_layer(table).cover(covered)
    for program in (covered, plain):
        assert program.ask(f"unshare {0x20000}") == "0"
        assert program.ask(f"bind 0 0 0 {folder / 'moved'}|{folder / 'untouched'}") == "0"
    assert covered.identity("stat 0 0 0 untouched") == SHOWN
    assert covered.identity(f"stat 0 0 0 {folder / 'untouched'}") == SHOWN
    for program in (covered, plain):
        assert program.ask(f"chroot 0 0 0 {folder / 'folder'}") == "0"
    names = (
        "/inside",
        "/absolute",
        "/../../inside",
        "moved",
        "/moved",
        "/proc/self/fd/3",
        "..",
        "folder/absolute",
    )
    for name in names:
        line = f"fstatat {AT_FDCWD} 0 0 {name}"  # statx tells the mount's number too, which differs
        assert covered.ask(line) == shown(plain.ask(line), table), name
    assert covered.identity("stat 0 0 0 /absolute") == table.shown(of(folder / "folder/inside"))


def test_a_program_in_a_pid_namespace_of_its_own_is_itself_in_proc(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered = start(within=("unshare", "--pid", "--mount-proc", "--fork"))
    new_layer(table).cover(covered)
    for name in ("moved", "/proc/self/fd/3", "/proc/1/fd/3", "/dev/fd/3", "/proc/thread-self/cwd/moved"):
        assert covered.identity(f"stat 0 0 0 {name}") == SHOWN, name
    assert covered.identity("stat 0 0 0 missing") == covered.identity("stat 0 0 0 /proc/2/fd/3") == 2


def test_only_what_descriptors_name_is_changed_where_that_is_enough(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    covered = start()
    new_layer(table).cover(covered, descriptors_only=True)
    assert covered.identity("fstat 3 0 0 x") == SHOWN
    assert covered.identity("fstatat 3 0x1000 0 ") == SHOWN
    assert covered.identity("stat 0 0 0 moved") == of(folder / "moved")
    assert covered.identity(f"fstatat {AT_FDCWD} 0 0 moved") == of(folder / "moved")


def test_the_table_can_be_replaced_and_programs_added(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    first, second = start(), start()
    layer = new_layer(table)
    layer.cover(first)
    layer.cover(second)
    assert second.identity("stat 0 0 0 moved") == SHOWN
    again = VirtualServer.of_layer(layer.place.directory)
    again.replace_table(IdentityTable.from_pairs([]))
    again.close()
    assert first.identity("stat 0 0 0 moved") == second.identity("stat 0 0 0 moved") == of(folder / "moved")


@pytest.mark.parametrize("threads", [1, 3])
def test_kill_9_of_either_supervisor_is_not_noticed(
    start: Callable[..., Program],
    new_layer: Callable[..., Layer],
    table: IdentityTable,
    folder: Path,
    *,
    threads: int,
    pauses: Pauses,
) -> None:
    looked = time.monotonic()
    covered = start()
    layer = new_layer(table)
    layer.cover(covered)
    assert covered.ask(f"look {threads} {SHOWN.inode} 0 moved") == "looking"
    for round_ in range(24):
        serving, standing_by = layer.servers()
        os.kill((serving, standing_by)[round_ % 2], signal.SIGKILL)
        await_condition(lambda before=(serving, standing_by): layer.servers() != before, "a new pair")
    calls, wrong, gap_us = map(int, covered.ask("enough").split())
    assert wrong == 0
    assert calls > 100
    assert gap_us / 1e6 - pauses.since(looked) < 1


def test_a_supervisor_that_stands_still_is_replaced(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered = start()
    layer = new_layer(table)
    layer.cover(covered)
    serving, _ = layer.servers()
    os.kill(serving, signal.SIGSTOP)
    assert covered.identity("stat 0 0 0 moved") == SHOWN
    assert layer.servers()[0] != serving


def test_a_file_system_that_hangs_holds_up_only_who_asks_for_it(
    start: Callable[..., Program],
    new_layer: Callable[..., Layer],
    table: IdentityTable,
    folder: Path,
    pauses: Pauses,
) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse to make a file system of that hangs")
    hanging = folder / "hanging"
    hanging.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mounted = subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "hanging", hanging], check=False, pass_fds=(device,)
    )
    try:
        if mounted.returncode:
            pytest.skip("a file system of ours cannot be mounted here")
        covered, waiting = start(), start()
        new_layer(table).cover(covered, waiting)
        waiting.send(f"stat 0 0 0 {hanging}/file")
        began = time.monotonic()
        assert covered.identity("stat 0 0 0 moved") == SHOWN
        assert pauses.ran_s(began) < 5
        assert covered.identity("stat 0 0 0 moved") == SHOWN
    finally:
        os.close(device)  # every request fails now
        subprocess.run(["umount", "--lazy", hanging], check=False)
    assert waiting.hear().split()[0] != "0"


def test_signals_whose_handlers_restart_calls_do_not_disturb_them(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered = start()
    new_layer(table).cover(covered)
    assert covered.ask("alarm 500") == "0"
    assert covered.ask(f"look 1 {SHOWN.inode} 0 moved") == "looking"
    time.sleep(0.5)
    _, wrong, _ = map(int, covered.ask("enough").split())
    assert wrong == 0


def test_a_freeze_in_the_middle_of_calls_changes_no_answer(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    mount = unified_mount()
    if mount is None:
        pytest.skip("no cgroup version 2 is mounted")
    covered = start()
    cgroup = Cgroup(mount / f"{SESSION}-layer").create()
    try:
        (cgroup.path / "cgroup.procs").write_text(str(covered.pid))
        new_layer(table).cover(covered)
        assert covered.ask(f"look 2 {SHOWN.inode} 0 moved") == "looking"
        for _ in range(20):
            (cgroup.path / "cgroup.freeze").write_text("1")
            await_condition(cgroup.is_frozen, "the freeze")
            (cgroup.path / "cgroup.freeze").write_text("0")
        calls, wrong, _ = map(int, covered.ask("enough").split())
        assert wrong == 0
        assert calls > 0
    finally:
        cgroup.remove()


def test_both_supervisors_end_with_the_last_program(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    first, second = start(), start()
    layer = new_layer(table)
    layer.cover(first, second)
    layer.server.close()
    servers = registry.servers_of(layer.place.directory)
    assert len(servers) == 2
    first.end()
    assert second.identity("stat 0 0 0 moved") == SHOWN
    second.end()
    await_condition(lambda: not any(map(registry.serves, servers)), "the end of the supervisors")
    await_condition(lambda: not layer.is_there, "the layer's directory to go")


def test_a_supervisor_that_has_nothing_to_do_ends_with_its_controller(
    new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    layer = new_layer(table)
    servers = layer.servers()
    layer.server.close()
    await_condition(lambda: not any(map(registry.serves, servers)), "the end of the supervisors")
    assert not layer.is_there


def test_what_is_left_of_killed_supervisors_is_swept_when_the_program_has_ended(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable
) -> None:
    covered = start()
    layer = new_layer(table)
    layer.cover(covered)
    state = str(Path(layer.place.directory).parents[1])
    process = reference(covered.pid)
    serving, standing_by = layer.servers()
    layer.server.close()
    os.kill(serving, signal.SIGSTOP)
    os.kill(standing_by, signal.SIGKILL)
    os.kill(serving, signal.SIGKILL)
    await_condition(lambda: not registry.servers_of(layer.place.directory), "the end of the supervisors")
    assert registry.sweep(state) == 0
    assert registry.table_for(state, [process]) == table
    covered.end()
    assert registry.sweep(state) == 1
    assert registry.table_for(state, [process]) is None


def test_a_program_that_has_a_listener_already_is_refused_with_the_reason(
    start: Callable[..., Program], new_layer: Callable[..., Layer], table: IdentityTable, folder: Path
) -> None:
    covered = start()
    layer, second = new_layer(table), new_layer(table)
    layer.cover(covered)
    with pytest.raises(OsRefused, match="another supervisor"):
        second.cover(covered)
    assert covered.identity("stat 0 0 0 moved") == SHOWN
    (tracee,) = ptrace.seize([covered.pid], lambda: None)
    try:
        assert layers_of(tracee) == (layer.place.number,)
    finally:
        tracee.detach()
