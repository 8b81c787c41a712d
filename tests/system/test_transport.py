"""Much is sent over a real SSH connection, and beside it: it comes as it was sent, encrypted fast, and a dead link is noticed."""

from __future__ import annotations

import json
import time

import pytest
from harness.sshd import SERVER
from harness.traces import Traces
from harness.waiting import await_condition
from real.transporting import TransportBed

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture
def bed(traces: Traces) -> TransportBed:
    return TransportBed(traces)


def test_much_comes_as_it_was_sent_under_aes_gcm_also_while_new_keys_are_made(bed: TransportBed) -> None:
    digest = bed.fill(64 * MIB)
    sent = bed.send(rekey_bytes=8 * MIB)
    assert (sent.received_bytes, sent.cipher) == (64 * MIB, "aes128-gcm@openssh.com")
    assert bed.digest.read_text() == digest


def test_a_server_without_aes_gcm_is_sent_to_as_well(bed: TransportBed) -> None:
    config = bed.ssh.folder / "host-key-config"
    bed.there.must_run("/usr/sbin/sshd", "-f", config, "-o", "Port=2222", "-o", "Ciphers=aes256-ctr")
    digest = bed.fill(8 * MIB)
    sent = bed.send(f"root@{SERVER}:2222")
    assert (sent.received_bytes, sent.cipher) == (8 * MIB, "aes256-ctr")
    assert bed.digest.read_text() == digest


def test_much_comes_as_it_was_sent_beside_ssh(bed: TransportBed) -> None:
    digest = bed.fill(64 * MIB)
    assert bed.send(direct=True).received_bytes == 64 * MIB
    assert bed.digest.read_text() == digest


@pytest.mark.parametrize("direct", [False, True], ids=["through-ssh", "beside-it"])
def test_over_a_slow_link_goes_less(bed: TransportBed, *, direct: bool) -> None:
    bed.limit(megabits=100)
    digest = bed.fill(64 * MIB)
    sent = bed.send(direct=direct)
    assert sent.received_bytes == 64 * MIB
    # What came before the link was measured went plain.
    assert sent.sent_bytes < 52 * MIB
    assert bed.digest.read_text() == digest


@pytest.mark.parametrize("direct", [False, True], ids=["through-ssh", "beside-it"])
def test_a_link_that_is_down_is_noticed_by_both_sides(traces: Traces, *, direct: bool) -> None:
    bed = TransportBed(traces, silence_s=2)
    bed.fill(MIB)
    ended = bed.digest.with_name("digest.ended")
    with bed.start(direct=direct) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["received_bytes"] == MIB
        # Longer than either waits for the other: they say that they are alive.
        time.sleep(3)
        assert process.poll() is None
        assert not ended.exists()
        bed.ssh.cable.down()
        said, errors = process.communicate("\n", timeout=30)
    assert json.loads(said)["message"].endswith("failed: it said nothing for 2 s."), errors
    await_condition(ended.exists, "the other side to give up")
