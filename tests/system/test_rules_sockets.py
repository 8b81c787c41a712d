"""What the rules say of sockets is what CRIU, and ckpt, really do with them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from real.asked import Asked
from real.verdicts import BareVerdict, blocking, findings, forced, one, rules_of

from ckpt.host.preflight import netlink_rules, shared_socket_rules, socket_option_rules, socket_rules
from ckpt.host.preflight.lost_options import LOST
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity

pytestmark = pytest.mark.system

RULES = socket_rules.RULES + netlink_rules.RULES + socket_option_rules.RULES + shared_socket_rules.RULES

NEEDS = "import ctypes, fcntl, signal, socket, struct, subprocess\nlibc = ctypes.CDLL(None, use_errno=True)\n"
PAIR = (
    "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()[:2])\n"
    "c = a.accept()[0]; held['s'] = (a, b, c)\n"
)
CONNECTED = ("--tcp-established",)
PING_GROUPS = Path("/proc/sys/net/ipv4/ping_group_range")


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    return Asked(workload, tmp_path)


@pytest.fixture
def bare(criu: Path, tmp_path: Path) -> BareVerdict:
    return BareVerdict(criu, tmp_path)


def look(workload: Workload, *, tcp_established: bool = False) -> tuple[Finding, ...]:
    return findings(
        workload.pids(), RULES, DumpOptions(tcp_established=tcp_established), str(workload.cgroup)
    )


REFUSED = {
    "multipath TCP": ("held['s'] = socket.socket(2, 1, 262)", "socket-protocol", (), "Unsupported proto 262"),
    "vsock": (
        "held['s'] = socket.socket(40, 1, 0)",
        "socket-protocol",
        (),
        "Unknown socket collected (family 40)",
    ),
    "XDP": (
        "held['s'] = socket.socket(44, 3, 0)",
        "socket-protocol",
        (),
        "Unknown socket collected (family 44)",
    ),
    "open connection": (PAIR, "tcp-established", (), "Connected TCP socket"),
    "connection half closed": (PAIR + "b.shutdown(1)", "tcp-established", (), "Connected TCP socket"),
    "connection on its way": (
        (
            "s = held['s'] = socket.socket(); s.setblocking(False)\n"
            "try: s.connect(('240.0.0.1', 9))\n"
            "except BlockingIOError: answer = 1"
        ),
        "tcp-established",
        (),
        "Connected TCP socket",
    ),
    "connection that is not accepted": (
        (
            "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())\n"
            "held['s'] = (a, b)"
        ),
        "tcp-backlog",
        CONNECTED,
        "In-flight connection",
    ),
    "closed connection that is not accepted": (
        (
            "a = held['s'] = socket.create_server(('127.0.0.1', 0))\n"
            "socket.create_connection(a.getsockname()).close()"
        ),
        "tcp-backlog",
        (),
        "In-flight connection",
    ),
    "corked UDP": (
        "s = held['s'] = socket.socket(2, 2); s.setsockopt(17, 1, 1)",
        "udp-corked",
        (),
        "corked dgram socket",
    ),
    "packet socket twice in a group": (
        (
            "s = held['s'] = socket.socket(17, 3, 3)\n"
            "for _ in range(2): s.setsockopt(263, 1, struct.pack('=iHH8s', 1, 0, 6, bytes((1, 0, 94, 0, 0, 1))))"
        ),
        "packet-membership",
        (),
        "Multiple MC membership",
    ),
    "netlink with an answer": (
        (
            "s = held['s'] = socket.socket(16, 3, 0); s.bind((0, 0))\n"
            "s.send(struct.pack('=IHHIIBxxxI', 24, 22, 0x301, 1, 0, 0, 0))"
        ),
        "netlink-unread",
        (),
        "The socket has data to read",
    ),
    "netlink in a high group": (
        "s = held['s'] = socket.socket(16, 3, 0); s.bind((0, 0)); s.setsockopt(270, 1, 33)",
        "netlink-groups",
        (),
        "more than 32 groups",
    ),
    "netlink in a group without a port": (
        "s = held['s'] = socket.socket(16, 3, 0); s.setsockopt(270, 1, 1)",
        "netlink-groups",
        (),
        "bound to groups but not to portid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_criu_refuses_is_a_blocker(
    case: str, program: Asked, workload: Workload, bare: BareVerdict
) -> None:
    code, rule, options, error = REFUSED[case]
    try:
        program.do(
            NEEDS + "answer = 0\ntry:\n" + "".join(f"    {line}\n" for line in code.splitlines()) + NO_SUCH
        )
    except AssertionError:
        pytest.skip("this kernel has no such socket")
    found = look(workload, tcp_established=bool(options))
    assert blocking(found) == [rule]
    assert error in bare.dump(program.pid, *options)


NO_SUCH = "except OSError as error: raise SystemExit(f'no such socket: {error}')\n"

# What is fine, all in one process, and what it sees afterwards.
FINE = """
s = held['s'] = {}
lone = socket.socket(); lone.bind(('127.0.0.1', 0)); s['bound'] = lone
s['listening'] = socket.create_server(('127.0.0.1', 0))
six = s['six'] = socket.socket(10, 1); six.bind(('::1', 0)); six.listen()
s['udp'] = u = socket.socket(2, 2); u.bind(('127.0.0.1', 0))
s['connected udp'] = v = socket.socket(2, 2); v.connect(u.getsockname())
s['lite'] = socket.socket(2, 2, 136)
s['raw'] = socket.socket(2, 3, 1); s['raw of any'] = socket.socket(2, 3, 255); s['raw six'] = socket.socket(10, 3, 58)
s['packet'] = p = socket.socket(17, 3, 3); p.setsockopt(263, 5, struct.pack('=IIII', 4096, 4, 2048, 8))
s['netlink'] = n = socket.socket(16, 3, 0); n.bind((0, 1 | 64)); s['netlink unbound'] = socket.socket(16, 3, 15)
refused = s['refused'] = socket.socket()
try: refused.connect(('127.0.0.1', 1))
except OSError: pass
"""
SEEN = "answer = {name: str(s.getsockname()) for name, s in held['s'].items()}"


def test_what_is_fine_is_found_fine_and_comes_back(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(NEEDS + FINE)
    before = program.do(SEEN)
    found = look(workload)
    assert rules_of(found) == ["port"]
    assert len(found) == 3
    come_back(ckpt, workload)
    assert program.do(SEEN) == before


def come_back(ckpt: Ckpt, workload: Workload, *options: str) -> None:
    checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop", *options)["id"]
    workload.await_empty()
    ckpt("restore", checkpoint)


def test_connections_of_every_state_are_kept_with_the_option(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    program.do(NEEDS + PAIR)
    program.do(PAIR.replace("held['s']", "held['half']") + "b.shutdown(1)")
    program.do(PAIR.replace("held['s']", "held['six']").replace("('127.0.0.1', 0)", "('::1', 0), family=10"))
    program.do("s = held['self'] = socket.socket(); s.bind(('127.0.0.1', 0)); s.connect(s.getsockname())")
    states = "answer = [s.getsockopt(6, 11, 1)[0] for s in (*held['s'], *held['half'], *held['six'], held['self'])]"
    before = program.do(states)
    assert "tcp-established" in blocking(look(workload))
    # Nobody else has an end of them.
    assert rules_of(look(workload, tcp_established=True)) == ["port"]
    come_back(ckpt, workload, "--tcp-established")
    assert program.do(states) == before
    assert program.do("a, b, c = held['s']; b.send(b'x'); answer = c.recv(9).decode()") == "x"


def test_the_other_side_of_a_kept_connection_is_told(program: Asked, workload: Workload) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program.do(NEEDS + f"held['s'] = socket.create_connection({server.getsockname()!r})")
        found = one(look(workload, tcp_established=True), "tcp-peer")
        assert f"127.0.0.1:{server.getsockname()[1]}" in found.message
        assert found.severity is Severity.INFO


def test_what_is_lost_of_sockets_is_told(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(
        NEEDS
        + "s = held['u'] = socket.socket(2, 2); s.bind(('127.0.0.1', 0)); s.sendto(b'xyz', s.getsockname())\n"
        "m = held['m'] = socket.socket(2, 2); m.bind(('', 0))\n"
        "m.setsockopt(0, 35, socket.inet_aton('224.1.1.1') + socket.inet_aton('127.0.0.1'))\n"
        "l = held['l'] = socket.create_server(('127.0.0.1', 0))\n"
        "l.setsockopt(6, 14, struct.pack('=H2x4s120xBBH4x80s', 2, bytes((127, 0, 0, 1)), 0, 0, 2, b'ab'))"
    )
    found = look(workload)
    assert rules_of(found, Severity.WARNING) == ["multicast", "tcp-md5", "udp-unread"]
    assert blocking(found) == []
    come_back(ckpt, workload)
    assert rules_of(look(workload), Severity.WARNING) == []


@pytest.fixture
def pings() -> Iterator[None]:
    """Ping sockets for root, while a test lasts."""
    before = PING_GROUPS.read_text()
    try:
        PING_GROUPS.write_text("0 0")
        yield
    finally:
        PING_GROUPS.write_text(before)


@pytest.mark.alone
@pytest.mark.usefixtures("pings")
@pytest.mark.parametrize("made", ["2, 2, 1); s.bind(('127.0.0.1', 7))", "10, 2, 58); s.bind(('::1', 7))"])
def test_a_ping_socket_loses_its_address(made: str, program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(f"{NEEDS}s = held['s'] = socket.socket({made}")
    identifier = "answer = held['s'].getsockname()[:2]"
    before = program.do(identifier)
    assert before[1] == 7
    found = look(workload)
    assert rules_of(found, Severity.WARNING) == ["ping-socket"]
    assert blocking(found) == []
    checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"]
    workload.await_empty()
    PING_GROUPS.write_text("1 0")
    ckpt("restore", checkpoint, exit_code=22)
    PING_GROUPS.write_text("0 0")
    ckpt("restore", checkpoint)
    assert program.do(identifier) != before


def test_tls_in_the_kernel_is_lost(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    if program.do(
        NEEDS
        + PAIR
        + "try: b.setsockopt(6, 31, b'tls'); answer = 0\nexcept OSError as error: answer = error.errno"
    ):
        pytest.skip("this kernel has no TLS")
    above = "answer = held['s'][1].getsockopt(6, 31, 16).hex()"
    before = program.do(above)
    assert blocking(look(workload, tcp_established=True)) == ["tcp-ulp"]
    come_back(ckpt, workload, "--tcp-established", "--force")
    assert program.do(above) != before


def test_every_option_that_is_named_as_lost_is_lost(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    kinds = {
        "TCP": (2, 1, 0), "TCPv6": (10, 1, 0), "UDP": (2, 2, 0), "UDPv6": (10, 2, 0), "RAW": (2, 3, 1),
        "RAWv6": (10, 3, 58), "UNIX": (1, 2, 0), "UNIX-STREAM": (1, 1, 0), "NETLINK": (16, 3, 0), "PACKET": (17, 3, 0),
    }  # fmt: skip
    assert kinds.keys() == LOST.keys()
    wanted = [
        (option.name, *kind, option.level, option.number, option.is_text)
        for protocol, kind in kinds.items()
        for option in LOST[protocol]
    ]
    # One socket an option, set to the first value that differs and that the kernel takes.
    changed = program.do(
        NEEDS + f"wanted = {wanted!r}\n"
        "held['s'] = {}\n"
        "for place, (name, family, kind, protocol, level, number, text) in enumerate(wanted):\n"
        "    s = socket.socket(family, kind, protocol); get = (level, number, 16) if text else (level, number)\n"
        "    try: old = s.getsockopt(*get)\n"
        "    except OSError: continue\n"
        "    for value in (b'reno', b'cubic') if text else (1, 0, 2, 5, 16, 500, 5000, 100000):\n"
        "        try: s.setsockopt(level, number, value)\n"
        "        except OSError: continue\n"
        "        if s.getsockopt(*get) != old: held['s'][place] = (s, get, str(old)); break\n"
        "answer = sorted(held['s'])"
    )
    assert len(changed) > 0.8 * len(wanted)
    found = [finding for finding in look(workload) if finding.rule == "socket-options"]
    assert len(found) == len(changed)
    said = [finding.message.partition("whose ")[2].partition(" ")[0] for finding in found]
    assert sorted(said) == sorted(wanted[place][0] for place in changed)
    come_back(ckpt, workload)
    assert (
        program.do("answer = [p for p, (s, get, old) in held['s'].items() if str(s.getsockopt(*get)) != old]")
        == []
    )
    assert rules_of(look(workload), Severity.WARNING) == []


def test_a_listener_that_the_starter_has_too_cannot_be_bound(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hand_over(program, server, tmp_path)
        found = one(look(workload), "socket-shared-outside")
        assert f"process {os.getpid()} (" in found.message
        assert found.severity is Severity.BLOCKER
        checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop", *forced(ckpt))["id"]
        workload.await_empty()
        failed = ckpt("restore", checkpoint, exit_code=22)
        assert "in use" in failed["error"]["message"]
    ckpt("restore", checkpoint)
    assert "socket-shared-outside" not in rules_of(look(workload))


def test_a_socket_of_two_trees_becomes_two(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    other = Asked(workload, tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shared:
        shared.bind(("127.0.0.1", 0))
        hand_over(program, shared, tmp_path)
        hand_over(other, shared, tmp_path)
    found = one(look(workload), "socket-between-trees")
    assert found.severity is Severity.BLOCKER
    checkpoint = ckpt("dump", "--cgroup", workload.cgroup, "--stop", *forced(ckpt))["id"]
    workload.await_empty()
    assert "in use" in ckpt("restore", checkpoint, exit_code=22)["error"]["message"]


def hand_over(program: Asked, what: socket.socket, folder: Path) -> None:
    """Give the program a descriptor, as its parent would have."""
    path = str(folder / "hand-over")
    with socket.socket(socket.AF_UNIX) as meeting:
        # An address of a unix socket is short, a test's folder is long.
        here = os.open(folder, os.O_PATH)
        meeting.bind(f"/proc/self/fd/{here}/hand-over")
        os.close(here)
        meeting.listen()
        program.do(
            NEEDS + f"d = os.open({str(folder)!r}, os.O_PATH); j = socket.socket(1)\n"
            "j.connect(f'/proc/self/fd/{d}/hand-over'); held['j'] = j; os.close(d)"
        )
        accepted = meeting.accept()[0]
        socket.send_fds(accepted, [b"x"], [what.fileno()])
        program.do("j = held.pop('j'); held['given'] = socket.recv_fds(j, 9, 1)[1][0]; j.close()")
        accepted.close()
    os.unlink(path)


IN_ANOTHER_NETWORK = """
own = os.open('/proc/self/ns/net', os.O_RDONLY)
assert libc.unshare(0x40000000) == 0
s = held['s'] = socket.socket({made}
assert libc.setns(own, 0x40000000) == 0; os.close(own)
"""


@pytest.mark.parametrize(
    ("made", "error"),
    [
        ("2, 1); s.bind(('0.0.0.0', 0)); s.listen()", "Socket state 10 obtained but expected 7"),
        ("1, 1); s.bind('\\0x'); s.listen()", "not found"),
        ("2, 1)", ""),
    ],
)
def test_a_socket_of_another_network(
    made: str, error: str, program: Asked, workload: Workload, bare: BareVerdict
) -> None:
    program.do(NEEDS + IN_ANOTHER_NETWORK.format(made=made))
    found = one(look(workload), "socket-namespace")
    assert found.severity is (Severity.BLOCKER if error else Severity.WARNING)
    said = bare.dump(program.pid)
    assert error in said
    assert bool(said) == bool(error)


def test_a_network_namespace_needs_the_program_ip(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unshare = shutil.which("unshare")
    assert unshare is not None
    pid = workload.spawn([unshare, "--net", "sleep", "600"], tmp_path)
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == own:
        pass
    assert rules_of(look(workload)) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert blocking(look(workload)) == ["network-tools"]
