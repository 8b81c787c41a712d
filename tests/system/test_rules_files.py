"""What the rules say of files is what real CRIU, and a restore by ckpt, do with them."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked
from real.checking import criu_errors, findings, names, overlay
from real.holding import Holder, holding

from ckpt.host.linux import mount, umount
from ckpt.host.preflight import file_rules, sharing_rules
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.units import ByteCount

pytestmark = pytest.mark.system

RULES = (*file_rules.RULES, *sharing_rules.RULES)
LARGE = 70 << 20


@pytest.fixture
def holder(criu: Path, tmp_path: Path) -> Iterator[Holder]:
    with holding() as started:
        started.do(f"os.chdir({str(tmp_path)!r})")
        yield started
        started.do("os.chdir('/')")


def messages(found: tuple[Finding, ...]) -> str:
    return "; ".join(finding.message for finding in found)


GHOSTS = {
    "open": "f = held['f'] = open('large', 'wb'); f.write(bytes(b'x') * {size}); f.flush(); os.unlink('large')",
    "mapped": (
        "open('large', 'wb').write(b'x' * {size}); f = open('large', 'r+b')\n"
        "held['m'] = mmap.mmap(f.fileno(), 0); f.close(); os.unlink('large')"
    ),
}


@pytest.mark.parametrize("case", GHOSTS)
def test_a_deleted_file_above_the_limit_is_a_blocker(
    case: str, holder: Holder, criu: Path, tmp_path: Path
) -> None:
    holder.do(GHOSTS[case].format(size=LARGE))
    found = findings(holder.cgroup, RULES)
    assert "ghost-limit" in names(found, Severity.BLOCKER)
    assert [finding.option for finding in found if finding.rule == "ghost-limit"] == ["--ghost-limit"]
    assert "which was deleted and has 70.0 MiB: more than the limit of 64.0 MiB" in messages(found)
    assert "increase limit" in criu_errors(criu, holder, tmp_path / "images")
    higher = DumpOptions(ghost_limit_bytes=ByteCount(LARGE + (1 << 20)))
    assert "ghost-limit" not in names(findings(holder.cgroup, RULES, higher), Severity.BLOCKER)
    assert criu_errors(criu, holder, tmp_path / "again", "--ghost-limit", str(LARGE + (1 << 20))) == ""


FINE = {
    "deleted": "held['f'] = open('f', 'w'); held['f'].write('x'); os.unlink('f')",
    "deleted and sparse": f"held['f'] = open('f', 'w'); held['f'].truncate({LARGE}); os.unlink('f')",
    "deleted with another name": "held['f'] = open('f'); os.link('f', 'other'); os.unlink('f')",
    "replaced": "held['f'] = open('f'); open('new', 'w').close(); os.rename('new', 'f')",
    "moved": "held['f'] = open('f'); os.rename('f', 'other')",
    "really called so": "held['f'] = open('f (deleted)', 'w')",
    "never had a name": "held['f'] = os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "in a removed directory": (
        "os.mkdir('d'); os.chdir('d'); held['f'] = open('g', 'w'); held['d'] = os.open('.', os.O_RDONLY)\n"
        "os.unlink('g'); os.rmdir('../d')"
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_what_criu_dumps_is_no_blocker(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    holder.do(f"{FINE[case]}\nanswer = 0")
    found = findings(holder.cgroup, RULES)
    assert names(found, Severity.BLOCKER) | names(found, Severity.WARNING) == set()
    assert criu_errors(criu, holder, tmp_path / "images") == ""


def test_a_changed_root_is_no_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "f").touch()
    holder.do(f"os.chroot({str(inside)!r}); os.chdir('/'); held['f'] = open('f')")
    assert names(findings(holder.cgroup, RULES), Severity.BLOCKER) == set()
    assert criu_errors(criu, holder, tmp_path / "images") == ""


COVERED = {
    "file": ("held['f'] = open('place/d/f')", "place/d/f"),
    "its directory": ("held['f'] = open('place/d/f')", "place/d"),
    "its whole mount": ("held['f'] = open('place/d/f')", "place"),
    "working directory": ("os.chdir('place/d')", "place/d"),
}


@pytest.mark.parametrize("case", COVERED)
def test_a_path_that_was_mounted_over_is_a_blocker(
    case: str, holder: Holder, criu: Path, tmp_path: Path
) -> None:
    program, over = COVERED[case]
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.touch()
    with mounted(place):
        (place / "d").mkdir()
        (place / "d/f").touch()
        holder.do(program)
        assert names(findings(holder.cgroup, RULES), Severity.BLOCKER) == set()
        covering = ("--bind", str(other)) if over.endswith("f") else ("-t", "tmpfs", "none")
        with mounted(tmp_path / over, *covering):
            assert "path-covered" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
            assert criu_errors(criu, holder, tmp_path / "images")
        holder.do("held.clear(); os.chdir('/')")


JOURNAL = """
def write():
    journal = None
    while not held.get('enough'):
        former, journal = journal, open('journal', 'w')  # it has another number than the one that is open yet
        if former:
            former.close()
        time.sleep(0.0005)
        os.unlink('journal')
held['thread'] = threading.Thread(target=write)
held['thread'].start()
"""


def test_a_file_that_is_made_anew_all_the_time_is_not_taken_for_one_that_was_mounted_over(
    holder: Holder,
) -> None:
    holder.do(JOURNAL)
    for _ in range(60):
        assert names(findings(holder.cgroup, RULES), Severity.BLOCKER) == set()
    holder.do("held['enough'] = True; held['thread'].join()")


OF_LOWER_LAYER = {
    "deleted": "held['f'] = open('merged/f'); os.unlink('merged/f')",
    "replaced": "held['f'] = open('merged/f'); open('merged/n', 'w').close(); os.rename('merged/n', 'merged/f')",
    "mapped and deleted": (
        "f = open('merged/f', 'rb'); held['f'] = mmap.mmap(f.fileno(), 0, prot=1); f.close(); os.unlink('merged/f')"
    ),
}


@pytest.mark.parametrize("case", OF_LOWER_LAYER)
def test_a_deleted_file_of_a_lower_layer_is_a_blocker(
    case: str, holder: Holder, criu: Path, tmp_path: Path
) -> None:
    with overlay(tmp_path):
        holder.do(OF_LOWER_LAYER[case])
        try:
            assert "deleted-on-overlay" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
            assert "Invalid cross-device link" in criu_errors(criu, holder, tmp_path / "images")
        finally:
            holder.do("held.clear()")


ON_OVERLAY = {
    "of the lower layer": "held['f'] = open('merged/f')",
    "of the upper layer, deleted": "held['f'] = open('merged/n', 'w'); os.unlink('merged/n')",
    "of the upper layer, with another name": (
        "held['f'] = open('merged/n', 'w'); os.link('merged/n', 'merged/o'); os.unlink('merged/n')"
    ),
    "copied up, deleted": (
        "held['f'] = open('merged/g'); open('merged/g', 'a').write('more'); os.unlink('merged/g')"
    ),
}


@pytest.mark.parametrize("case", ON_OVERLAY)
def test_other_files_of_an_overlay_are_no_blocker(
    case: str, holder: Holder, criu: Path, tmp_path: Path
) -> None:
    with overlay(tmp_path):
        holder.do(ON_OVERLAY[case])
        try:
            assert names(findings(holder.cgroup, RULES), Severity.BLOCKER) == set()
            assert criu_errors(criu, holder, tmp_path / "images") == ""
        finally:
            holder.do("held.clear()")


# --------------------------------------------------------------------------- what the restore shows


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    return Asked(workload, tmp_path)


def stop(ckpt: Ckpt, workload: Workload) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--force")["id"])
    workload.await_empty()
    return checkpoint


def test_a_program_that_was_replaced_is_told_and_runs_on(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    binary, new = tmp_path / "program", tmp_path / "new"
    for copy in (binary, new):
        shutil.copy("/bin/sleep", copy)
    program.do(f"import subprocess; held['p'] = subprocess.Popen([{str(binary)!r}, '600'])")
    running = "answer = os.readlink(f'/proc/{held[\"p\"].pid}/exe'), held['p'].poll()"
    await_condition(lambda: program.do(running)[0] == str(binary), "the program to run")
    assert "program-replaced" not in names(findings(workload.cgroup, RULES), Severity.INFO)
    new.rename(binary)
    assert "program-replaced" in names(findings(workload.cgroup, RULES), Severity.INFO)
    ckpt("restore", stop(ckpt, workload))
    path, ended = program.do(running)
    assert path.endswith(" (deleted)")
    assert ended is None


def test_a_file_that_is_written_is_told_and_must_be_as_it_was(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    written, log = tmp_path / "written", tmp_path / "log"
    program.do(f"held['f'] = open({str(written)!r}, 'w'); held['l'] = open({str(log)!r}, 'a')")
    (finding,) = (found for found in findings(workload.cgroup, RULES) if found.rule == "files-written")
    assert (finding.subject, finding.option) == (str(written), "--with-files")
    checkpoint = stop(ckpt, workload)
    written.write_text("more")
    ckpt("restore", checkpoint, exit_code=32)


def test_a_file_that_a_child_has_inherited_is_told_once(
    program: Asked, workload: Workload, tmp_path: Path
) -> None:
    program.do(
        f"import subprocess; f = held['f'] = open({str(tmp_path / 'written')!r}, 'w')\n"
        "held['p'] = subprocess.Popen(['sleep', '600'], pass_fds=[f.fileno()])"
    )
    assert len(workload.pids()) > 1
    assert [each.rule for each in findings(workload.cgroup, RULES)].count("files-written") == 1
    program.do("held['p'].kill(); held['p'].wait()")


LOCK = "import fcntl; f = held['f'] = open({path!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"


def test_a_lock_is_told_and_taken_again(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    program.do(LOCK.format(path=str(path)))
    found = findings(workload.cgroup, sharing_rules.RULES)
    assert [(finding.rule, finding.severity) for finding in found] == [("lock", Severity.INFO)]
    ckpt("restore", stop(ckpt, workload))
    with path.open() as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


ORPHAN = """
r, w = os.pipe()
child = os.fork()
if not child:
    if not os.fork():
        os.setsid(); os.close(r)
        os.write(w, b"%d" % os.getpid()); os.close(w)
        {body}
        signal.pause()
    os._exit(0)
os.waitpid(child, 0)
os.close(w)
orphan = int(os.read(r, 20))
os.close(r)
while open(f"/proc/{{orphan}}/stat").read().rpartition(")")[2].split()[1] == str(os.getpid()): time.sleep(0.005)
"""


def test_a_lock_of_two_trees_is_a_blocker(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    lock = (
        "import fcntl, signal, struct; f = held['f'] = open({path!r}, 'w')\n"
        "fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))\n"
    )
    program.do(lock.format(path=str(tmp_path / "file")) + ORPHAN.format(body=""))
    found = findings(workload.cgroup, RULES)
    assert "lock-across-trees" in names(found, Severity.BLOCKER)
    ckpt("restore", stop(ckpt, workload), exit_code=22)


def test_a_restore_waits_for_a_lock_that_an_ancestor_holds(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        os.set_inheritable(stream.fileno(), True)
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"echo $$ >{workload.cgroup}/cgroup.procs; exec sleep 600"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            start_new_session=True,
            cwd="/",
        )
        try:
            await_condition(lambda: workload.pids() == [process.pid], "the process to be there")
            found = findings(workload.cgroup, sharing_rules.RULES)
            assert "lock-outside" in names(found, Severity.WARNING)
            assert f"whose lock process {os.getpid()} " in messages(found)
            checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--force")["id"])
        finally:
            process.kill()
            process.wait()
        restoring = ckpt.start("restore", checkpoint)
        with pytest.raises(subprocess.TimeoutExpired):
            restoring.wait(timeout=2)
        fcntl.flock(stream, fcntl.LOCK_UN)
        assert restoring.wait(timeout=60) == 0


def test_a_lock_that_others_wait_for_is_a_warning(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    program.do(LOCK.format(path=str(path)))
    with subprocess.Popen(["flock", path, "sleep", "600"]) as waiter:
        try:
            await_condition(
                lambda: "lock-awaited" in names(findings(workload.cgroup, RULES), Severity.WARNING),
                "the waiter to wait",
            )
            found = findings(workload.cgroup, RULES)
            assert f"process {waiter.pid} (flock) waits for its lock" in messages(found)
        finally:
            waiter.kill()


def test_a_file_on_fuse_is_told_and_is_restored_while_that_is_mounted(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this kernel has no FUSE")
    place = tmp_path / "fuse"
    place.mkdir()
    with served(place):
        program.do(f"held['d'] = os.open({str(place)!r}, os.O_PATH)")
        (finding,) = (found for found in findings(workload.cgroup, RULES) if found.rule == "network-files")
        assert (finding.severity, finding.subject) == (Severity.INFO, str(place))
        ckpt("restore", stop(ckpt, workload))
        program.do("os.close(held['d'])")


@contextmanager
def served(place: Path) -> Iterator[None]:
    """An empty FUSE file system, served by this process."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    mount(str(place), str(place), "fuse", options=options)
    server = threading.Thread(target=_serve, args=(device,))
    server.start()
    try:
        yield
    finally:
        umount(str(place))
        server.join()
        os.close(device)


_INIT, _GETATTR, _STATFS, _ACCESS, _ENOSYS = 26, 3, 17, 34, 38


def _serve(device: int) -> None:
    """Answer what the kernel asks of a root directory, until it is unmounted."""
    root = struct.pack("=QII6Q3I7I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
    answers = {
        _INIT: struct.pack("=IIIIHHII10I", 7, 31, 0, 0, 1, 1, 4096, 1, *[0] * 10)[:64],
        _GETATTR: root,
        _STATFS: bytes(80),
        _ACCESS: b"",
    }
    with suppress(OSError):
        while request := os.read(device, 1 << 17):
            _, opcode, unique = struct.unpack_from("=IIQ", request)
            answer = answers.get(opcode)
            error = -_ENOSYS if answer is None else 0
            body = answer or b""
            os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


@contextmanager
def mounted(place: Path, *what: str) -> Iterator[None]:
    """Something (a tmpfs) that is mounted at a place."""
    subprocess.run(["mount", *(what or ("-t", "tmpfs", "none")), place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
