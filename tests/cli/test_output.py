"""Where words go, colours, progress."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from ckpt.cli.attachment import Source
from ckpt.cli.output import Output, columns, paint, print_text, wants_colour
from ckpt.cli.progress import announced, telling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal())
    assert "\x1b[" in paint("ckpt:", "red", Terminal())
    assert paint("ckpt:", "red", io.StringIO()) == "ckpt:"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_are_respected(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    assert paint("ckpt:", "red", Terminal()) == "ckpt:"


def test_warnings_are_on_stderr_and_quiet_drops_them(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).warn("careful")
    assert capsys.readouterr() == ("", "ckpt: warning: careful\n")
    Output(json=False, quiet=True).warn("careful")
    assert capsys.readouterr() == ("", "")


def test_paths_that_are_not_utf_8_keep_their_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_text(b"/tmp/\xff".decode("utf-8", "surrogateescape"))
    assert capfdbinary.readouterr().out == b"/tmp/\xff\n"


def test_a_table_is_as_wide_as_its_cells() -> None:
    assert columns(("A", "BB"), [("1", "2"), ("333", "4")]) == "A    BB\n1    2\n333  4"


def test_a_cell_cannot_break_its_row_or_speak_to_the_terminal() -> None:
    assert columns(("A",), [("one\ntwo\x1b[2J",)]) == "A\none\\ntwo\\x1b[2J"


class Port:
    place = "here"

    def step(self, number: int) -> int:
        return number + 1


def test_a_port_announces_its_phases_and_works_as_before() -> None:
    heard: list[str] = []
    port = announced(Port(), {"step": "stepping"}, heard.append)
    assert (port.step(1), port.place, heard) == (2, "here", ["stepping"])


def test_verbose_tells_each_phase_once(capsys: pytest.CaptureFixture[str]) -> None:
    with telling(Output(json=False, verbose=True)) as announce:
        for phase in ("dumping", "dumping", "storing"):
            announce(phase)
    told = capsys.readouterr()
    assert [line.split()[-1] for line in told.err.splitlines()] == ["dumping", "storing"]
    assert told.out == ""


def test_there_is_no_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with telling(Output(json=False)) as announce:
        announce("dumping")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_phase_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("ckpt.cli.progress.PATIENCE_S", 0)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with telling(Output(json=False)) as announce:
        while "dumping" not in terminal.getvalue():
            announce("dumping")


def test_a_log_is_relayed_once_as_it_grows(tmp_path: Path) -> None:
    log, target = tmp_path / "log", tmp_path / "target"
    log.write_bytes(b"old, ")
    with target.open("wb") as stream:
        source = Source(path=str(log), offset=5, target=stream.fileno())
        source.relay()
        with log.open("ab") as more:
            more.write(b"new" * 100_000)
        source.relay()
        source.relay()
    assert target.read_bytes() == b"new" * 100_000


def test_a_log_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    Source(path=str(tmp_path / "none"), offset=0, target=1).relay()


def test_a_warning_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=False, verbose=True)
    output.warn("one\x1b[2J")
    output.note("two\x9b2J")
    assert capsys.readouterr().err == "ckpt: warning: one\\x1b[2J\nckpt: two\\x9b2J\n"
