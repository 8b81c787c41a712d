"""What is made of what another host says while ckpt is installed there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ckpt.errors import PeerFailed, SetupFailed, Usage
from ckpt.model.checks import State
from ckpt.remote.installing import Installation, Offer, Release, check_prefix, install
from ckpt.remote.setup_process import MARK
from ckpt.remote.ssh import SshConnection

TAG = "cpython-311-x86_64-linux-gnu"
OFFER = Offer(
    release=Release(version="1.2.3", digest="ab" * 32), init_name="init-1", init_digest="cd", python_tag=TAG
)
FITS = ["/usr/bin/python3.11", "3.11.2", f".{TAG}.so"]
OLD = ["/usr/bin/python3", "3.9.2", ".cpython-39-x86_64-linux-gnu.so"]
NOTHING_THERE = {"was": None, "up_to_date": False, "init": ""}
CHECK = {"name": "criu", "state": "ok", "detail": "it works", "remedy": ""}
INSTALLED = {"installed": "/opt/ckpt/versions/x", "checks": [CHECK]}


@dataclass
class Program:
    """A program there that says this, and takes what is written."""

    output: bytes
    errors: bytes = b""
    status: int | None = 0
    takes: int = 1 << 30
    taken: bytes = b""

    def read(self, count: int, _timeout_s: float) -> bytes:
        piece, self.output = self.output[:count], self.output[count:]
        return piece

    def read_errors(self, count: int) -> bytes:
        piece, self.errors = self.errors[:count], self.errors[count:]
        return piece

    def write(self, content: bytes, _timeout_s: float) -> None:
        self.taken += content
        if len(self.taken) > self.takes:
            raise PeerFailed(host="web2", reason="Socket is closed")

    def exit_status(self, _timeout_s: float) -> int | None:
        return self.status

    def close(self) -> None:
        pass


@dataclass
class Connection:
    """Runs these programs, one after another, whatever is asked for."""

    programs: list[Program]
    host: str = "web2"
    commands: list[str] = field(default_factory=list)

    def run(self, command: str) -> Program:
        self.commands.append(command)
        return self.programs.pop(0)


def said(*documents: object) -> bytes:
    return b"".join(f"{MARK}{json.dumps(document)}\n".encode() for document in documents)


def installed(*programs: Program, **options: Any) -> Installation:
    connection = cast("SshConnection", Connection(list(programs)))
    return install(connection, OFFER, lambda sink: sink(b"\x1f\x8bcontent"), lambda _phase: None, **options)


def test_the_first_python_that_fits_is_taken_whatever_the_login_prints() -> None:
    noise = b"Welcome!\n\xff\xfe\n"
    pythons = Program(noise + said(OLD, FITS, [FITS[0], 3]) + b"bye\n")
    setup = Program(noise + said(NOTHING_THERE, {"phase": "testing"}, INSTALLED))
    done = installed(pythons, setup)
    assert (done.python.path, done.was, done.is_new, done.sent_bytes) == (
        FITS[0],
        None,
        True,
        len(setup.taken),
    )
    assert [(check.name, check.state) for check in done.checks] == [("criu", State.OK)]
    assert setup.taken.endswith(b"\x1f\x8bcontent")


def test_what_is_there_already_is_not_sent_again() -> None:
    there = {"was": {"version": "1.2.3", "digest": "ab" * 32}, "up_to_date": True, "init": "cd"}
    setup = Program(said(there))
    done = installed(Program(said(FITS)), setup)
    assert (done.is_current, done.is_new, done.has_other_init) == (True, False, False)
    assert b"\x1f\x8b" not in setup.taken
    forced = installed(Program(said(FITS)), Program(said(there, INSTALLED)), force=True)
    assert forced.is_new
    other = installed(Program(said(FITS)), Program(said(there | {"init": "ef"})), dry_run=True)
    assert other.has_other_init


def test_without_a_fitting_python_all_that_are_there_are_named() -> None:
    with pytest.raises(SetupFailed, match=r"Python 3\.11 .*/usr/bin/python3 is 3\.9\.2 \(cpython-39"):
        installed(Program(said(OLD)))
    with pytest.raises(SetupFailed, match="no python3") as caught:
        installed(Program(b""))
    assert "python3.11" in caught.value.advice


def test_why_it_failed_there_is_told_also_when_it_ended_while_we_sent() -> None:
    failed = said(NOTHING_THERE, {"failed": "No space left\x1b[2J", "remedy": "Free some."})
    with pytest.raises(SetupFailed, match=r"No space left\\x1b\[2J\.$") as caught:
        installed(Program(said(FITS)), Program(failed, takes=0))
    assert caught.value.advice == "Free some."
    # It said nothing: then it is the way that broke.
    with pytest.raises(PeerFailed, match="Socket is closed"):
        installed(Program(said(FITS)), Program(b"", takes=0, status=None))


def test_a_user_who_is_not_root_is_told_what_to_do() -> None:
    refused = Program(b"", errors=b"sudo: a password is required\n", status=1, takes=0)
    with pytest.raises(SetupFailed, match="sudo refused: sudo: a password is required") as caught:
        installed(Program(said(FITS)), refused)
    assert "root@HOST" in caught.value.advice


@pytest.mark.parametrize(
    "output",
    [
        b"",
        said([]),
        b"%s{\n" % MARK.encode(),
        b"%s%s\n" % (MARK.encode(), b"[" * 100_000),
        said({"was": 3}),
        said(NOTHING_THERE, {"checks": 3}),
        said(NOTHING_THERE, {"checks": [{**CHECK, "state": "?"}]}),
        said(NOTHING_THERE, {"checks": [{**CHECK, "name": []}]}),
    ],
)
def test_what_is_no_answer_is_an_error(output: bytes) -> None:
    with pytest.raises(SetupFailed):
        installed(Program(said(FITS)), Program(output))


def test_endless_answers_are_cut_off() -> None:
    with pytest.raises(PeerFailed, match="1048576 bytes"):
        installed(Program(b"x" * (2 << 20)))


def test_every_word_of_the_command_is_quoted() -> None:
    path = "/usr/local/bin/python3.11 $(touch x)"
    connection = Connection([Program(said([path, *FITS[1:]])), Program(said(NOTHING_THERE))])
    install(cast("SshConnection", connection), OFFER, lambda _sink: None, lambda _phase: None, dry_run=True)
    assert f"'{path}'" in connection.commands[1]


@pytest.mark.parametrize("prefix", ["", "opt", "/", "/opt/../etc", "/opt//x", "/opt/", "/a b", "/a\n"])
def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(Usage, match="prefix"):
        check_prefix(prefix)
