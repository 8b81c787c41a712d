"""A patched libc shows the numbers of the table, and nothing else of the program changes: real processes, real CRIU."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.bare_criu import BareCriu
from harness.subjects import Workload
from harness.waiting import await_condition

from ckpt.host import ptrace
from ckpt.host.ptrace import Tracee, seize
from ckpt.host.virtual.filter import INSTRUCTION_BYTES, layer_filter
from ckpt.host.virtual.mappings import mappings_of
from ckpt.host.virtual.patching import NotPatched, Patch, carried, patch, unpatch
from ckpt.host.virtual.stub import StubTable
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber, Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not ptrace.supported(), reason="there is a stub for x86-64 only"),
]

SOURCE = Path(__file__).parents[1] / "harness/stat_calls.c"
DEVICE = DeviceNumber(os.makedev(0xABC, 0xDEF12))
SYS_CLOSE, SYS_FSTAT, SYS_SECCOMP = 3, 5, 317
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
PYTHON = """
import os, sys
os.chdir(sys.argv[1])
number = 1
while True:
    try:
        with open(str(number)) as request:
            word, path = request.read().split()
    except FileNotFoundError:
        import time; time.sleep(0.002)
        continue
    fd = os.open(path, os.O_RDONLY)
    entry = next(entry for entry in os.scandir(os.path.dirname(path)) if entry.path == path)
    if word == "run":
        import subprocess
        lines = [subprocess.run(["stat", "-c", "%i", path], capture_output=True, text=True).stdout.strip()]
    else:
        lines = [f"{s.st_dev} {s.st_ino}" for s in (os.stat(path), os.lstat(path), os.fstat(fd), entry.stat())]
    os.close(fd)
    with open("writing", "w") as answer:
        print(*lines, sep="\\n", file=answer)
    os.rename("writing", f"{number}.answer")
    number += 1
"""

Pairs = tuple[tuple[Identity, Identity], ...]


Start = Callable[..., "Victim"]


class Victim:
    """A process that answers what stat calls show it.

    It is our own child, and nobody else waits for it: a thread in waitpid(2) would take its stops from the tracer.
    """

    def __init__(self, workload: Workload, folder: Path, command: list[str]) -> None:
        self.folder = folder
        with open(folder / "out", "ab") as out:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(workload.cgroup), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.pid = Pid(self.process.pid)
        self._asked = 0
        shell = os.path.realpath("/bin/sh")
        await_condition(lambda: os.readlink(f"/proc/{self.pid}/exe") != shell, f"{command} to have started")

    def ask(self, word: str, path: Path) -> list[list[str]]:
        """The lines of its answer, as words."""
        self._asked += 1
        new = self.folder / "new"
        new.write_text(f"{word} {path}\n")
        new.rename(self.folder / str(self._asked))
        answer = self.folder / f"{self._asked}.answer"
        await_condition(answer.exists, lambda: f"an answer to {word} {path}")
        return [line.split() for line in answer.read_text().splitlines()]

    @contextmanager
    def stopped(self) -> Iterator[Tracee]:
        [tracee] = seize([self.pid], lambda: None)
        try:
            yield tracee
        finally:
            tracee.detach()

    def patch(self, pairs: Pairs) -> Patch | NotPatched:
        with self.stopped() as tracee:
            done = patch(tracee, StubTable.of(pairs))
            assert carried(tracee) == (pairs if isinstance(done, Patch) else ())
            return done

    def stubs(self) -> list[tuple[int, int]]:
        """The anonymous mappings that can be run."""
        return [
            (one.start, one.end)
            for one in mappings_of(self.pid)
            if one.is_text and not one.file and not one.name
        ]


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("stats") / "stats"
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True
    )
    return str(program)


@pytest.fixture
def start(workload: Workload, tmp_path: Path) -> Iterator[Start]:
    """Starts a victim with a folder of its own, which is its last argument."""
    victims: list[Victim] = []

    def start(*command: str) -> Victim:
        folder = tmp_path / f"victim-{len(victims)}"
        folder.mkdir()
        victims.append(Victim(workload, folder, [*command, str(folder)]))
        return victims[-1]

    yield start
    workload.cgroup.kill()
    for victim in victims:
        victim.process.wait(10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "files/one"
    path.parent.mkdir()
    path.write_text("one")
    return path


def real(path: Path) -> Identity:
    status = path.stat()
    return Identity(device=DeviceNumber(status.st_dev), inode=InodeNumber(status.st_ino))


def shown_as(path: Path, inode: int, device: DeviceNumber = DEVICE) -> Pairs:
    return ((real(path), Identity(device=device, inode=InodeNumber(inode))),)


def with_numbers(lines: Iterable[list[str]], pairs: Pairs) -> list[list[str]]:
    """The answer to "all" as it must be with this table."""
    shown = {(str(real.device), str(real.inode)): seen for real, seen in pairs}
    changed = []
    for name, result, error, device, inode, *rest in lines:
        seen = shown.get((device, inode))
        numbers = [str(seen.device), str(seen.inode)] if seen else [device, inode]
        changed.append([name, result, error, *numbers, *rest])
    return changed


def test_every_stat_call_shows_the_numbers_of_the_table_and_all_else_is_untouched(
    start: Start, stats: str, file: Path
) -> None:
    other, link = file.with_name("other"), file.with_name("link")
    other.write_text("other")
    link.symlink_to(file)
    victim = start(stats)
    paths = [file, other, link, file.parent, file / "not-a-directory", file.with_name("missing")]
    before = [victim.ask("all", path) for path in paths]
    pairs = shown_as(file, 1 << 40) + shown_as(file.parent, 7, DeviceNumber(os.makedev(7, 300)))
    pairs = tuple(sorted(pairs, key=lambda pair: pair[0].inode % 16))

    with victim.stopped() as tracee:
        done = patch(tracee, StubTable.of(pairs))
        assert isinstance(done, Patch), done
        assert set(carried(tracee)) == set(pairs)

    assert done.sites >= 6
    for path, lines in zip(paths, before, strict=True):
        assert victim.ask("all", path) == with_numbers(lines, pairs), path
        assert victim.ask("child", path) == with_numbers(lines, pairs), path
    assert victim.ask("all", file)[0][3:5] == [str(DEVICE), str(1 << 40)]

    with victim.stopped() as tracee:
        unpatch(tracee)
    assert [victim.ask("all", path) for path in paths] == before
    assert victim.stubs() == []


def test_a_call_changes_no_register_and_nothing_of_the_red_zone(start: Start, stats: str, file: Path) -> None:
    victim = start(stats)
    assert victim.ask("registers", file) == [
        [call, "0", str(real(file).inode)] for call in ("stat", "lstat", "fstat")
    ]
    assert isinstance(victim.patch(shown_as(file, 4711)), Patch)
    assert victim.ask("registers", file) == [[call, "0", "4711"] for call in ("stat", "lstat", "fstat")]


def test_a_large_table_is_replaced_by_a_small_one_and_by_none(start: Start, stats: str, file: Path) -> None:
    victim = start(stats)
    many = tuple(
        (
            Identity(device=DEVICE, inode=InodeNumber(number)),
            Identity(device=DEVICE, inode=InodeNumber(number + 10**6)),
        )
        for number in range(20_000)
    )
    with victim.stopped() as tracee:
        assert isinstance(patch(tracee, StubTable.of(many + shown_as(file, 5))), Patch)
    assert victim.ask("all", file)[0][4] == "5"
    assert isinstance(victim.patch(shown_as(file, 6)), Patch)
    assert victim.ask("all", file)[0][4] == "6"
    assert len(victim.stubs()) == 1
    assert isinstance(victim.patch(()), NotPatched)
    assert victim.ask("all", file)[0][4] == str(real(file).inode)
    assert victim.stubs() == []


def test_the_same_table_again_changes_nothing(start: Start, stats: str, file: Path) -> None:
    victim = start(stats)
    # A program that still loads its libraries would have more of them to patch the second time.
    victim.ask("all", file)
    first = victim.patch(shown_as(file, 8))
    before = victim.stubs()
    assert victim.patch(shown_as(file, 8)) == first
    assert victim.stubs() == before


def test_threads_and_signal_handlers_in_the_middle_of_calls_never_see_a_wrong_number(
    start: Start, stats: str, file: Path
) -> None:
    victim = start(stats)
    victim.ask("threads", file)
    inode = str(real(file).inode)
    assert {seen for _, seen in victim.ask("look", file)} == {inode}
    for number in range(1001, 1016):
        assert isinstance(victim.patch(shown_as(file, number)), Patch)
        assert {tuple(line) for line in victim.ask("look", file)} == {
            (str(who), str(number)) for who in range(4)
        }
    assert isinstance(victim.patch(()), NotPatched)
    assert {seen for _, seen in victim.ask("look", file)} == {inode}
    # Those that a thread stood in at the time may be left, and no more.
    assert len(victim.stubs()) <= 4


def test_a_python_program_is_shown_the_numbers_and_a_program_that_it_runs_is_not(
    start: Start, file: Path
) -> None:
    victim = start(sys.executable, "-I", "-S", "-c", PYTHON)
    victim.ask("stats", file)
    assert isinstance(victim.patch(shown_as(file, 99)), Patch)
    assert victim.ask("stats", file) == [[str(DEVICE), "99"]] * 4
    assert victim.ask("run", file) == [[str(real(file).inode)]]


def test_a_patched_process_is_dumped_restored_and_gets_another_table(
    start: Start, workload: Workload, stats: str, file: Path, bare: BareCriu
) -> None:
    victim = start(stats)
    victim.ask("threads", file)
    assert isinstance(victim.patch(shown_as(file, 21)), Patch)
    for number in (22, 23):
        images = file.parent / f"images-{number}"
        bare.dump(victim.pid, images, leave_running=False)
        victim.process.wait(10)
        workload.await_empty()
        assert bare.restore(images) == victim.pid
        assert {seen for _, seen in victim.ask("look", file)} == {str(number - 1)}
        assert isinstance(victim.patch(shown_as(file, number)), Patch)
        assert {seen for _, seen in victim.ask("look", file)} == {str(number)}
    with victim.stopped() as tracee:
        unpatch(tracee)
    assert {seen for _, seen in victim.ask("look", file)} == {str(real(file).inode)}


def test_a_static_program_is_left_alone_and_the_reason_given(
    start: Start, file: Path, tmp_path: Path
) -> None:
    source, program = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    victim = start(str(program))
    reason = "it has no glibc mapped: a static program, or another libc"
    assert victim.patch(shown_as(file, 9)) == NotPatched(reason=reason)
    with victim.stopped() as tracee:
        unpatch(tracee)


def test_a_program_is_patched_although_its_seccomp_filters_would_kill_it_for_the_mapping(
    start: Start, stats: str, file: Path
) -> None:
    victim = start(stats)
    assert victim.ask("filter", file) == [["0"]]
    assert isinstance(victim.patch(shown_as(file, 9)), Patch)
    assert victim.ask("all", file)[0][4] != str(real(file).inode)


def test_the_calls_of_the_stub_pass_the_filter_that_stops_all_other_stat_calls(
    start: Start, stats: str, file: Path
) -> None:
    victim = start(stats)
    before = victim.ask("all", file)
    pairs = shown_as(file, 9)
    with victim.stopped() as tracee, tracee.scratch(4096) as memory:
        done = patch(tracee, StubTable.of(pairs))
        assert isinstance(done, Patch)
        program = layer_filter(1, trusted=done.trusted)
        tracee.write(
            memory, struct.pack("<HxxxxxxQ", len(program) // INSTRUCTION_BYTES, memory + 16) + program
        )
        listener = tracee.call(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, memory)
        tracee.call(SYS_CLOSE, listener)
        # Nobody listens: a call that is handed on does not exist.
        with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
            tracee.call(SYS_FSTAT, 0, memory)
    assert victim.ask("all", file) == with_numbers(before, pairs)


class CutOff:
    """A tracee whose n-th write fails."""

    def __init__(self, tracee: Tracee, n: int) -> None:
        self._tracee = tracee
        self.left = n

    def __getattr__(self, name: str) -> object:
        return getattr(self._tracee, name)

    def write(self, address: int, content: bytes) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._tracee.write(address, content)


@pytest.mark.parametrize("has_old_stub", [False, True])
def test_a_failure_half_way_leaves_the_real_numbers_and_nothing_mapped(
    start: Start, stats: str, file: Path, *, has_old_stub: bool
) -> None:
    victim = start(stats)
    before = victim.ask("all", file)
    for n in range(1, 100):
        if has_old_stub:
            assert isinstance(victim.patch(shown_as(file, 5)), Patch)
        with victim.stopped() as tracee:
            cut_off = CutOff(tracee, n)
            done = patch(cut_off, StubTable.of(shown_as(file, 6)))
        if cut_off.left > 0:
            break
        assert done == NotPatched(reason=f"its memory cannot be changed: {os.strerror(errno.EIO)}")
        assert victim.ask("all", file) == before, n
        assert victim.stubs() == []
    assert n > 7
    assert isinstance(done, Patch)
    assert victim.ask("all", file)[0][4] == "6"


def test_the_newer_glibc_that_criu_brings_along_is_patched_too(
    start: Start, stats: str, file: Path, criu: Path
) -> None:
    libraries = criu.parents[1] / "lib"
    loader = libraries / "criu"
    if not (loader.exists() and (libraries / "libc.so.6").exists()):
        pytest.skip(f"{criu} brings no glibc of its own")
    victim = start(str(loader), "--library-path", str(libraries), stats)
    before = victim.ask("all", file)
    pairs = shown_as(file, 31)
    assert isinstance(victim.patch(pairs), Patch)
    assert victim.ask("all", file) == with_numbers(before, pairs)
    assert victim.ask("registers", file) == [[call, "0", "31"] for call in ("stat", "lstat", "fstat")]
