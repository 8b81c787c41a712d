"""Jobs with a network of their own: it comes with them, is joined at the right moment, and goes with them."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.bridges import SERVER, Bridge, ip, links
from harness.command import Ckpt
from harness.waiting import await_condition

from ckpt.host.network import detaching
from ckpt.host.network.adapter import HostNetworks
from ckpt.host.network.building import host_link_of
from ckpt.host.operations import JournaledOperations
from ckpt.host.recovery import undo_operation
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName, Pid

pytestmark = pytest.mark.system

PORT = 7000
V4, V6 = "10.211.7.5", "fd00:211:7::5"
OTHER_V4 = "10.211.7.6"


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    with Bridge(f"tb{secrets.token_hex(3)}", tmp_path) as made:
        yield made


@pytest.fixture
def client_place(bridge: Bridge) -> str:
    return bridge.namespace("10.211.7.9/24", "fd00:211:7::9/64")


Start = Callable[..., tuple[str, Pid]]


@pytest.fixture
def start(ckpt: Ckpt, bridge: Bridge, client_place: str) -> Start:
    def start(address: str = V4, *, listen: str = "") -> tuple[str, Pid]:
        """A job of this address with a server; gives its name and pid."""
        name = ckpt.new_job_name()
        wish = f"bridge={bridge.name},address={address}/24,gateway=10.211.7.9,address={V6}/64"
        server = (sys.executable, "-I", "-S", "-c", SERVER, listen or address, PORT)
        job = ckpt("run", "--detach", "--name", name, "--net", wish, "--", *server)
        assert client_place
        await_condition(lambda: _listens(job["pid"]), "the server to listen")
        return name, Pid(job["pid"])

    return start


def _listens(pid: int) -> bool:
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f":{PORT:04X}" in done.stdout


def _inside(pid: int, *words: str) -> list[dict[str, object]]:
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "ip", "-j", *words], check=True, capture_output=True, text=True
    )
    found: list[dict[str, object]] = json.loads(done.stdout or "[]")
    return found


def _await_no_ports(ckpt: Ckpt, *names: str) -> None:
    """Wait until the host's side of the interfaces of these jobs is gone."""
    mine = {host_link_of(str(ckpt.state), JobName(name)) for name in names}
    await_condition(lambda: not mine & links(), lambda: f"these interfaces to go away: {mine & links()}")


@pytest.mark.parametrize("server", [V4, V6])
def test_a_connection_goes_on_through_a_dump_and_through_a_stop_and_a_restore(
    server: str, start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name, _ = start(listen=server)
    client = bridge.client(client_place, server, PORT)
    ckpt("dump", name, "--tcp-established")
    client.await_more()
    checkpoint = ckpt("dump", name, "--tcp-established", "--stop")["id"]
    _await_no_ports(ckpt, name)
    restored = ckpt("restore", checkpoint)
    client.await_more()
    assert len(bridge.ports()) == 1
    assert ckpt("dump", name, "--tcp-established")["id"], "what was restored can be dumped again"
    client.await_more()
    client.close()
    ckpt("stop", name)
    _await_no_ports(ckpt, name)
    assert restored["pids"]


def test_what_the_job_changed_in_its_network_comes_back(start: Start, bridge: Bridge, ckpt: Ckpt) -> None:
    name, pid = start()
    changes = (
        "address add 10.211.8.5/24 dev eth0",
        "address add 10.1.1.1/32 dev lo",
        "route add 10.99.0.0/16 via 10.211.8.1 metric 7",
        "route add 10.98.0.0/16 dev eth0 src 10.211.7.5 table 77",
        "route add fd00:99::/64 via fd00:211:7::1",
        "link set eth0 mtu 1380",
    )
    for change in changes:
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *change.split()], check=True)
    questions = (
        ("address",),
        ("-4", "route", "show", "table", "all"),
        ("-6", "route", "show", "table", "all"),
    )

    def shown(process: int) -> list[list[object]]:
        kept = ("dst", "gateway", "dev", "metric", "prefsrc", "table", "ifname", "mtu", "address")
        lines: list[list[object]] = []
        for question in questions:
            for each in _inside(process, *question):
                lines.append([each.get(key) for key in kept])
                lines += [[found["local"], found["prefixlen"]] for found in each.get("addr_info", [])]
        # The kernel's own, which it gives by and by.
        return sorted((each for each in lines if not str(each[0]).startswith(("fe80", "ff00"))), key=str)

    before = shown(pid)
    checkpoint = ckpt("dump", name, "--stop")["id"]
    assert shown(ckpt("restore", checkpoint)["pid"]) == before
    assert len(bridge.ports()) == 1
    ckpt("stop", name)
    _await_no_ports(ckpt, name)


def test_two_jobs_on_one_bridge_have_their_own_addresses_and_the_same_port(
    start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    first, _ = start(V4)
    second, _ = start(OTHER_V4)
    clients = [bridge.client(client_place, address, PORT) for address in (V4, OTHER_V4)]
    assert len(bridge.ports()) == 2
    ckpt("stop", first)
    await_condition(lambda: len(bridge.ports()) == 1, "the first job's interface to go away")
    clients[1].await_more()
    clients[0].close()
    ckpt("stop", second)
    _await_no_ports(ckpt, first, second)


@pytest.mark.parametrize("phase", ["restored", "kept", "filed"])
def test_a_restore_that_dies_leaves_no_network_and_can_be_done_again(
    phase: str, start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name, _ = start()
    client = bridge.client(client_place, V4, PORT)
    checkpoint = ckpt("dump", name, "--tcp-established", "--stop")["id"]
    died = ckpt.run("restore", checkpoint, CKPT_FAILPOINT=phase)
    assert died.returncode == -signal.SIGKILL
    _await_no_ports(ckpt, name)
    ckpt("recover")
    ckpt("restore", checkpoint)
    client.await_more()
    client.close()
    ckpt("stop", name)
    _await_no_ports(ckpt, name)


def test_a_restore_that_dies_after_it_was_committed_goes_on_with_its_connections(
    start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name, _ = start()
    client = bridge.client(client_place, V4, PORT)
    checkpoint = ckpt("dump", name, "--tcp-established", "--stop")["id"]
    died = ckpt.run("restore", checkpoint, CKPT_FAILPOINT="let-go")
    assert died.returncode == -signal.SIGKILL
    client.await_more()
    client.close()
    ckpt("stop", name)
    _await_no_ports(ckpt, name)


def test_what_a_stopped_job_had_answers_nobody_while_it_goes(
    start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name, _ = start()
    client = bridge.client(client_place, V4, PORT)
    words = ("dump", name, "--tcp-established", "--stop")
    dumping = ckpt.start(*words, CKPT_FAILPOINT="durable:SIGSTOP")
    await_condition(lambda: "T (stopped)" in _status(dumping.pid), "the checkpoint to be durable")
    knocking = bridge.knocking(client_place, V4, PORT)
    dumping.send_signal(signal.SIGCONT)
    assert dumping.wait(timeout=60) == 0
    _await_no_ports(ckpt, name)
    # A reset would end the client's connection for good, a refusal show that one would have been sent.
    assert knocking.errors() <= {"EHOSTUNREACH", "ETIMEDOUT"}
    ckpt("restore", name)
    client.await_more()
    client.close()
    ckpt("stop", name)
    _await_no_ports(ckpt, name)


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_a_dump_that_is_killed_leaves_no_lock_in_the_network_of_the_job(
    start: Start, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name, _ = start()
    client = bridge.client(client_place, V4, PORT)
    died = ckpt.run("dump", name, "--tcp-established", CKPT_FAILPOINT="written")
    assert died.returncode == -signal.SIGKILL
    client.await_more()
    client.close()
    ckpt("stop", name)
    _await_no_ports(ckpt, name)


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_a_detached_network_lets_nothing_through_and_a_crash_attaches_it_again(
    kind: str, bridge: Bridge, client_place: str, ckpt: Ckpt
) -> None:
    name = ckpt.new_job_name()
    parent = bridge.name if kind == "bridge" else bridge.uplink()
    server = (sys.executable, "-I", "-S", "-c", SERVER, V4, PORT)
    job = ckpt("run", "--detach", "--name", name, "--net", f"{kind}={parent},address={V4}/24", "--", *server)
    await_condition(lambda: _listens(job["pid"]), "the server to listen")
    client = bridge.client(client_place, V4, PORT)
    target = Target(
        ref=TargetRef(kind=TargetKind.JOB, name=name),
        cgroup=job["cgroup"],
        roots=(Pid(job["pid"]),),
        job=JobName(name),
    )
    operation = JournaledOperations(str(ckpt.state)).begin("a test")
    networks = HostNetworks(str(ckpt.state))
    networks.detach(target, operation)
    reached = client.count
    with pytest.raises(AssertionError, match="waited"):
        client.await_more(timeout_s=0.5)
    assert client.count <= reached + 20
    # As after a crash of whoever detached it.
    actions = undo_operation(str(ckpt.state / "operations" / operation.id))
    assert [action.done for action in actions if "joined" in action.done]
    client.await_more()
    client.close()
    ckpt("stop", name)
    assert detaching.step_for(Pid(job["pid"])) is None
    networks.remove(target)
    _await_no_ports(ckpt, name)


@pytest.mark.parametrize(
    ("wish", "code", "words"),
    [
        ("bridge=nobridge,address=10.0.0.5/24", 13, "lacks a bridge of the name nobridge"),
        ("macvlan=nolink,address=10.0.0.5/24", 13, "lacks an interface of the name nolink"),
        ("bridge=lo,address=10.0.0.5/24", 13, "lacks a bridge of the name lo"),
        ("bridge=br0,address=10.0.0.5", 2, "needs its prefix, like 10.0.0.5/24"),
        ("bridge=br0,macvlan=eth0,address=10.0.0.5/24", 2, "one of bridge=NAME and macvlan=NAME"),
        ("bridge=br0,address=10.0.0.5/24,gateway=10.0.1.1", 2, "not in the network of an address"),
        ("bridge=br0;reboot,address=10.0.0.5/24", 2, "no name of an interface"),
        ("bridge=br0,address=10.0.0.5/24,mtu=7", 2, "not between 68 and 65535"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_sentence_and_leaves_nothing(
    wish: str, code: int, words: str, ckpt: Ckpt
) -> None:
    error = ckpt("run", "--detach", "--net", wish, "--", "true", exit_code=code)["error"]
    assert words in error["message"]
    assert not ckpt("ps")["jobs"]


def test_a_check_tells_what_a_restore_of_the_network_would_lack(
    start: Start, bridge: Bridge, ckpt: Ckpt
) -> None:
    name, pid = start()
    subprocess.run(["nsenter", "-t", str(pid), "-n", "nft", "add table inet mine"], check=True)
    [extras] = [each for each in ckpt("check", name)["findings"] if each["rule"] == "network-extras"]
    assert "1 table(s) of nftables" in extras["message"]
    checkpoint = ckpt("dump", name)["id"]

    def found(*, exit_code: int) -> str:
        """The rules and messages."""
        checked = ckpt("check", "--checkpoint", checkpoint, "--name", "other", exit_code=exit_code)
        return " ".join(f"{each['rule']}: {each['message']}" for each in checked["findings"])

    assert f"{V4}, an address of the workload, belongs to job {name}" in found(exit_code=30)
    ckpt("stop", name)
    assert "network-address" not in found(exit_code=0)
    ip("link", "set", bridge.name, "type", "bridge", "stp_state", "1", "forward_delay", "200")
    assert "network-spanning-tree" in found(exit_code=0)
