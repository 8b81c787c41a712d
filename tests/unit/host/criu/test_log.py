"""A log of any size and content is read in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.host.criu import log as log_module
from ckpt.host.criu.log import ERRORS_MAX, LINE_CHARS, TAIL_LINES, read_log


def test_a_missing_log_reads_as_an_empty_one(tmp_path: Path) -> None:
    reading = read_log(tmp_path / "none.log")
    assert (reading.errors, reading.warnings, reading.tail, reading.evidence) == ((), (), (), ())


def test_errors_and_warnings_are_told_apart_and_noise_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "dump.log"
    path.write_text(
        "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.2) Warn  (criu/x.c:1): careful\n"
        "(00.3) one\n(00.4) two\n(00.5) three\n(00.6) four\n"
        "(00.7) Error (criu/y.c:2): broken\n"
        "(00.8) Error (criu/cr-dump.c:9): Dumping FAILED.\n"
    )
    reading = read_log(path)
    assert reading.errors == ("(00.7) Error (criu/y.c:2): broken",)
    assert reading.warnings == ("(00.2) Warn  (criu/x.c:1): careful",)
    assert reading.around == (
        "(00.4) two",
        "(00.5) three",
        "(00.6) four",
        "(00.7) Error (criu/y.c:2): broken",
    )


def test_a_huge_log_is_read_at_both_ends_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "HEAD_BYTES", 2000)
    monkeypatch.setattr(log_module, "TAIL_BYTES", 1000)
    path = tmp_path / "restore.log"
    with path.open("w") as file:
        file.write("(00.1) Error (criu/a.c:1): early\n")
        file.writelines(f"(00.2) line {number}\n" for number in range(10_000))
        file.write("(00.9) Error (criu/b.c:1): late\n")
    reading = read_log(path)
    assert reading.errors == ("(00.1) Error (criu/a.c:1): early", "(00.9) Error (criu/b.c:1): late")
    assert reading.tail[-1] == "(00.9) Error (criu/b.c:1): late"
    assert len(reading.tail) == TAIL_LINES


def test_lines_and_their_number_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "dump.log"
    path.write_text(f"Error (criu/a.c:1): {'x' * 5000}\n" * (ERRORS_MAX + 50))
    reading = read_log(path)
    assert len(reading.errors) == ERRORS_MAX
    assert {len(line) for line in reading.errors} == {LINE_CHARS}


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "dump.log"
    path.write_bytes(b"\xff\xfe\0\0(00.1) Error (criu/a.c:1): name \xc3\x28\n")
    assert "name" in read_log(path).errors[0]
