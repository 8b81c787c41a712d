"""What the rules say of unix sockets and pipes is what CRIU, and ckpt, really do with them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked
from real.verdicts import BareVerdict, blocking, findings, forced, one, rules_of

from ckpt.host.preflight import pipe_rules, shared_socket_rules, socket_option_rules, unix_rules
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity

pytestmark = pytest.mark.system

RULES = unix_rules.RULES + pipe_rules.RULES + socket_option_rules.RULES + shared_socket_rules.RULES

NEEDS = "import array, ctypes, fcntl, resource, signal, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with a short path: a unix address has 108 bytes."""
    short = Path(f"/tmp/{tmp_path.name[-40:]}-{os.getpid()}")
    short.symlink_to(tmp_path)
    yield short
    short.unlink()


@pytest.fixture
def program(workload: Workload, tmp_path: Path, place: Path) -> Asked:
    asked = Asked(workload, tmp_path)
    asked.do(f"{NEEDS}D = {str(place)!r}")
    return asked


@pytest.fixture
def bare(criu: Path, tmp_path: Path) -> BareVerdict:
    return BareVerdict(criu, tmp_path)


def look(workload: Workload, *, external_unix: bool = False) -> tuple[Finding, ...]:
    return findings(workload.pids(), RULES, DumpOptions(external_unix=external_unix), str(workload.cgroup))


def come_back(ckpt: Ckpt, workload: Workload, *options: str) -> None:
    checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop", *options)["id"]
    workload.await_empty()
    ckpt("restore", checkpoint)


@contextmanager
def service(kind: socket.SocketKind, address: str) -> Iterator[socket.socket]:
    """A unix socket of this process, as a service has one."""
    with socket.socket(socket.AF_UNIX, kind) as bound:
        bound.bind(address)
        if kind is not socket.SOCK_DGRAM:
            bound.listen()
        yield bound


REFUSED = {
    "connection with data that is not accepted": (
        (
            "a = socket.socket(1); a.bind(D + '/q'); a.listen(); b = socket.socket(1); b.connect(D + '/q')\n"
            "b.send(b'x'); held['s'] = (a, b)"
        ),
        "unix-in-flight",
        "Non-empty write queue on an in-flight socket",
    ),
    "closed connection that is not accepted": (
        (
            "a = held['s'] = socket.socket(1); a.bind(D + '/q'); a.listen(); b = socket.socket(1)\n"
            "b.connect(D + '/q'); b.close()"
        ),
        "unix-in-flight",
        "Found a closed in-flight socket",
    ),
    "credentials that wait": (
        "a, b = held['s'] = socket.socketpair(); b.setsockopt(1, 16, 1); a.send(b'x')",
        "unix-control-messages",
        "Control messages in queue",
    ),
    "times that wait": (
        "a, b = held['s'] = socket.socketpair(1, 2); b.setsockopt(1, 29, 1); a.send(b'x')",
        "unix-control-messages",
        "Control messages in queue",
    ),
    "terminal on its way": (
        (
            "a, b = socket.socketpair(); m, s = os.openpty(); socket.send_fds(a, [b'x'], [m]); os.close(m)\n"
            "held['s'] = (a, b, s)"
        ),
        "unix-descriptors",
        "likely SCM case",
    ),
    "userfaultfd on its way": (
        (
            "a, b = held['s'] = socket.socketpair(); f = libc.syscall(323, 0)\n"
            "socket.send_fds(a, [b'x'], [f]); os.close(f)"
        ),
        "unix-descriptors",
        "anon_inode:[userfaultfd]",
    ),
    "peer with another peer": (
        (
            "a, b = held['s'] = socket.socketpair(1, 2); c = held['c'] = socket.socket(1, 2); c.bind(D + '/c')\n"
            "b.connect(D + '/c')"
        ),
        "unix-peer-unreachable",
        "with unreachable peer",
    ),
    "packet pipe": ("held['p'] = os.pipe2(os.O_DIRECT)", "pipe-of-packets", "packetized mode for pipes"),
    "too many pipes": (
        (
            "limit = resource.RLIMIT_NOFILE; resource.setrlimit(limit, (4096, resource.getrlimit(limit)[1]))\n"
            "held['p'] = [os.pipe() for _ in range(1025)]"
        ),
        "too-many-pipes",
        "OOM storing pipe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_criu_refuses_is_a_blocker(
    case: str, program: Asked, workload: Workload, bare: BareVerdict
) -> None:
    code, rule, error = REFUSED[case]
    program.do(code)
    assert blocking(look(workload)) == [rule]
    assert error in bare.dump(program.pid)


# What is fine, all in one process, and how it is used afterwards.
FINE = """
s = held['s'] = {}
l = s['listening'] = socket.socket(1); l.bind(D + '/l'); l.listen()
o = s['not accepted'] = socket.socket(1); o.bind(D + '/o'); o.listen(); c = held['c'] = socket.socket(1); c.connect(D + '/o')
u = s['unlinked'] = socket.socket(1); u.bind(D + '/u'); u.listen(); os.unlink(D + '/u')
r = s['replaced'] = socket.socket(1); r.bind(D + '/r'); r.listen(); os.unlink(D + '/r'); open(D + '/r', 'w').close()
t = s['abstract'] = socket.socket(1); t.bind('\\0' + D); t.listen()
a, b = socket.socketpair(); a.send(b'pair'); s['closed peer'] = b; a.close()
a, b = s['a'], s['b'] = socket.socketpair(); p, w = os.pipe(); held['w'] = w
socket.send_fds(a, [b'x'], [p]); os.close(p)
d = s['datagram'] = socket.socket(1, 2); d.bind(D + '/d'); e = socket.socket(1, 2); e.sendto(b'data', D + '/d'); e.close()
q = s['seqpacket'], held['q'] = socket.socketpair(1, 5)
held['pipe'] = os.pipe(); os.write(held['pipe'][1], b'pipe'); f = os.pipe(); os.close(f[0]); held['half'] = f[1]
os.mkfifo(D + '/f'); held['fifo'] = os.open(D + '/f', os.O_RDWR); os.write(held['fifo'], b'fifo')
"""
USED = """
s = held['s']
c = socket.socket(1); c.connect(D + '/l'); s['listening'].accept()[0].close()
s['not accepted'].settimeout(5); s['not accepted'].accept()
c = socket.socket(1); c.connect('\\0' + D)
assert s['closed peer'].recv(9) == b'pair' and s['datagram'].recv(9) == b'data'
assert os.read(held['pipe'][0], 9) == b'pipe' and os.read(held['fifo'], 9) == b'fifo'
os.write(held['w'], b'flown'); p = socket.recv_fds(s['b'], 9, 1)[1][0]
assert os.read(p, 9) == b'flown'
answer = 'used'
"""


def test_what_is_fine_is_found_fine_and_comes_back(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(FINE)
    found = look(workload)
    assert rules_of(found) == ["unix-address"]
    come_back(ckpt, workload)
    assert program.do(USED) == "used"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_connection_to_a_service_is_a_blocker_and_names_it(
    kind: socket.SocketKind, program: Asked, workload: Workload, bare: BareVerdict, place: Path
) -> None:
    with service(kind, f"{place}/service") as listening:
        program.do(f"s = held['s'] = socket.socket(1, {int(kind)}); s.connect(D + '/service')")
        connection, _ = listening.accept()
        with connection:
            # The option makes no difference.
            for option in (False, True):
                found = one(look(workload, external_unix=option), "unix-peer")
                assert found.severity is Severity.BLOCKER
                assert f"process {os.getpid()} (" in found.message
                assert f"({place}/service)" in found.message
            assert "External socket is used" in bare.dump(program.pid)
            assert "Can't dump half of stream unix connection" in bare.dump(program.pid, "--ext-unix-sk")


def test_well_known_services_are_called_by_their_names(
    program: Asked, workload: Workload, place: Path
) -> None:
    (place / ".X11-unix").mkdir()
    with service(socket.SOCK_STREAM, f"{place}/.X11-unix/X7") as listening:
        program.do("s = held['s'] = socket.socket(1); s.connect(D + '/.X11-unix/X7')")
        with listening.accept()[0]:
            found = one(look(workload), "unix-peer")
    assert ": the X server" in found.message
    assert "without a display" in found.remedy


def test_a_connection_that_a_service_has_not_accepted_is_lost_with_the_workload(
    program: Asked, workload: Workload, bare: BareVerdict, place: Path
) -> None:
    with service(socket.SOCK_STREAM, f"{place}/service"):
        program.do("s = held['s'] = socket.socket(1); s.connect(D + '/service')")
        assert blocking(look(workload)) == ["unix-unaccepted-outside"]
        assert bare.dump(program.pid, leave_running=False) == ""
        workload.await_empty()
        assert "unresolved for" in bare.restore()


def test_a_datagram_service_needs_the_option_and_must_be_there(
    program: Asked, workload: Workload, bare: BareVerdict, ckpt: Ckpt, place: Path
) -> None:
    with service(socket.SOCK_DGRAM, f"{place}/log"):
        program.do("s = held['s'] = socket.socket(1, 2); s.connect(D + '/log')")
        found = one(look(workload), "unix-datagram-peer")
        assert found.severity is Severity.BLOCKER
        assert found.option == "--external-unix"
        assert "External socket is used" in bare.dump(program.pid)
        assert one(look(workload, external_unix=True), "unix-datagram-peer").severity is Severity.INFO
        checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--external-unix")["id"]
        workload.await_empty()
    (place / "log").unlink()
    ckpt("restore", checkpoint, exit_code=22)
    with service(socket.SOCK_DGRAM, f"{place}/log") as log:
        ckpt("restore", checkpoint)
        program.do("held['s'].send(b'line')")
        assert log.recv(9) == b"line"


def test_a_datagram_peer_without_a_name_is_a_blocker_with_the_option(
    program: Asked, workload: Workload, bare: BareVerdict, place: Path
) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        hand_over(program, there, place)
        found = one(look(workload, external_unix=True), "unix-datagram-peer")
        assert found.severity is Severity.BLOCKER
        assert found.option == ""
        assert "Can't dump name-less external socket" in bare.dump(program.pid, "--ext-unix-sk")


def test_a_client_that_was_not_accepted_is_forgotten(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    program.do("a = held['s'] = socket.socket(1); a.bind(D + '/q'); a.listen(); a.setblocking(False)")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{place}/q")
        found = look(workload)
        assert f"process {os.getpid()} (" in one(found, "unix-client-outside").message
        assert blocking(found) == []
        come_back(ckpt, workload)
        assert (
            program.do("try: answer = held['s'].accept()\nexcept BlockingIOError: answer = 'nobody'")
            == "nobody"
        )


def test_an_address_that_another_file_took_is_told(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    program.do("a = held['s'] = socket.socket(1); a.bind(D + '/q'); a.listen()")
    assert one(look(workload), "unix-address").subject == f"{place}/q"
    checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"]
    workload.await_empty()
    (place / "q").unlink()
    (place / "q").write_text("another file")
    ckpt("restore", checkpoint, exit_code=22)
    (place / "q").unlink()
    ckpt("restore", checkpoint)


def test_a_listener_that_the_starter_has_too_becomes_another(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    with service(socket.SOCK_STREAM, f"{place}/service") as shared:
        hand_over(program, shared, place)
        assert one(look(workload), "unix-shared-outside").severity is Severity.WARNING
        come_back(ckpt, workload)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{place}/service")
            program.do("s = socket.socket(fileno=held['given']); s.settimeout(5); s.accept()")


def test_what_takes_the_place_of_a_pipe_to_outside(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    read, write = os.pipe()
    hand_over(program, write, place)
    os.close(write)
    try:
        found = one(look(workload), "pipe-outside")
        assert found.severity is Severity.WARNING
        assert f"process {os.getpid()} (" in found.message
        assert "goes to the job's log" in found.message
        restored = ckpt("restore", dumped(ckpt, workload))
        program.do("os.write(held['given'], b'to the log\\n')")
        await_condition(
            lambda: "to the log" in ckpt.run("logs", restored["job"]).stdout, "the line to be in the log"
        )
    finally:
        os.close(read)


def test_a_pipe_from_outside_is_at_its_end(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    read, write = os.pipe()
    hand_over(program, read, place)
    os.close(read)
    try:
        assert "it is at its end" in one(look(workload), "pipe-outside").message
        ckpt("restore", dumped(ckpt, workload))
        assert program.do("answer = len(os.read(held['given'], 9))") == 0
    finally:
        os.close(write)


def dumped(ckpt: Ckpt, workload: Workload, *options: str) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop", *options)["id"])
    workload.await_empty()
    return checkpoint


def test_a_pipe_between_two_trees_kills_the_one_that_writes(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path, place: Path
) -> None:
    reader = Asked(workload, tmp_path)
    read, write = os.pipe()
    hand_over(program, write, place)
    hand_over(reader, read, place)
    os.close(read)
    os.close(write)
    assert f"process {reader.pid} has" in one(look(workload), "pipe-between-trees").message
    checkpoint = dumped(ckpt, workload, *forced(ckpt))
    ckpt("restore", checkpoint)
    (tmp_path / "asked-0" / "asked.new").write_text("\"os.write(held['given'], b'x')\"")
    (tmp_path / "asked-0" / "asked.new").rename(tmp_path / "asked-0" / "asked")
    await_condition(lambda: not Path(f"/proc/{program.pid}/fd/0").exists(), "SIGPIPE to end it")


def test_a_connection_between_two_trees_is_a_blocker(
    program: Asked, workload: Workload, bare: BareVerdict, tmp_path: Path, place: Path
) -> None:
    other = Asked(workload, tmp_path)
    here, there = socket.socketpair()
    with here, there:
        hand_over(program, here, place)
        hand_over(other, there, place)
    found = [finding for finding in look(workload) if finding.rule == "unix-peer"]
    assert {finding.pid for finding in found} == {program.pid, other.pid}
    assert all("in another tree of the workload" in finding.message for finding in found)
    assert "External socket is used" in bare.dump(program.pid)


def test_what_waits_in_a_fifo_that_others_have_is_there_twice(
    program: Asked, workload: Workload, ckpt: Ckpt, place: Path
) -> None:
    os.mkfifo(place / "fifo")
    # Under the name that the program opens it by.
    fifo = os.open(place.resolve() / "fifo", os.O_RDWR)
    try:
        program.do("held['f'] = os.open(os.path.realpath(D) + '/fifo', os.O_RDONLY)")
        os.write(fifo, b"abc")
        assert one(look(workload), "fifo-outside").severity is Severity.WARNING
        come_back(ckpt, workload)
        assert program.do("answer = os.read(held['f'], 9).decode()") == "abcabc"
    finally:
        os.close(fifo)


def hand_over(program: Asked, what: socket.socket | int, place: Path) -> None:
    """Give the program a descriptor, as its parent would have."""
    address = f"{place}/hand-over"
    with service(socket.SOCK_STREAM, address) as meeting:
        program.do(f"{NEEDS}j = held['j'] = socket.socket(1); j.connect({address!r})")
        accepted = meeting.accept()[0]
        socket.send_fds(accepted, [b"x"], [what if isinstance(what, int) else what.fileno()])
        program.do("j = held.pop('j'); held['given'] = socket.recv_fds(j, 9, 1)[1][0]; j.close()")
        accepted.close()
    os.unlink(address)
