"""How errors are told: to people, to programs, and with which exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import click
import pytest

from ckpt.cli.failures import document_of, tell, text_of
from ckpt.errors import (
    CkptError,
    CriuStuck,
    DumpFailed,
    HostMismatch,
    ObjectMissing,
    Problems,
    RestoreFailed,
)

VALUES = {
    "str": "something",
    "int": 7,
    "float": 1.5,
    "tuple[str, ...]": ("one", "two"),
}


def every_kind(kind: type[CkptError] = CkptError) -> Iterator[type[CkptError]]:
    for below in kind.__subclasses__():
        yield below
        yield from every_kind(below)


def an_error(kind: type[CkptError]) -> CkptError:
    return kind(**{field.name: VALUES[str(field.type)] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", sorted(every_kind(), key=lambda kind: kind.__name__), ids=lambda kind: kind.slug
)
def test_every_error_is_told_in_json_on_stdout(
    kind: type[CkptError], capsys: pytest.CaptureFixture[str]
) -> None:
    error = an_error(kind)
    assert tell(error, json=True) == error.exit_code
    told = capsys.readouterr()
    document = json.loads(told.out)["error"]
    assert {"slug", "message", "hint", "exit_code"} <= document.keys()
    assert (document["slug"], document["exit_code"]) == (kind.slug, kind.exit_code)
    assert told.err == ""


@pytest.mark.parametrize(
    "kind", sorted(every_kind(), key=lambda kind: kind.__name__), ids=lambda kind: kind.slug
)
def test_every_error_is_told_to_people_on_stderr(
    kind: type[CkptError], capsys: pytest.CaptureFixture[str]
) -> None:
    error = an_error(kind)
    assert tell(error, json=False) == error.exit_code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"ckpt: {error.message}\n")
    assert error.advice in told.err


def test_the_hint_follows_the_sentence() -> None:
    error = ObjectMissing(place="/s", kind="checkpoint", name="x", remedy="Look at 'ckpt list'.")
    assert text_of(error) == "ckpt: The store /s has no checkpoint x.\nLook at 'ckpt list'."


@pytest.mark.parametrize("kind", [DumpFailed, RestoreFailed])
def test_crius_lines_are_indented_and_its_log_is_named(kind: type[DumpFailed]) -> None:
    error = kind(
        cause="no", remedy="Try.", log_lines=("Error (a.c:1): x", "Error (b.c:2): y"), log_path="/l/dump.log"
    )
    assert text_of(error).splitlines()[1:] == [
        "Try.",
        "CRIU's log says:",
        "    Error (a.c:1): x",
        "    Error (b.c:2): y",
        "The whole log: /l/dump.log",
    ]
    assert document_of(error)["log_lines"] == ["Error (a.c:1): x", "Error (b.c:2): y"]
    assert document_of(error)["log_path"] == "/l/dump.log"


def test_a_criu_without_log_has_no_empty_lines() -> None:
    error = CriuStuck(cause="it hung", operation="the dump", timeout_s=3)
    assert text_of(error) == "ckpt: CRIU did not finish the dump within 3 s and was ended: it hung."


def test_all_reasons_are_in_the_document() -> None:
    error = HostMismatch(ref="web", reasons=("pid 7 is taken", "pid 8 is taken"))
    assert document_of(error)["reasons"] == ["pid 7 is taken", "pid 8 is taken"]


def test_clicks_errors_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(click.Command("dump"), info_name="ckpt dump")
    assert tell(click.UsageError("No such thing.", ctx=context), json=False) == 2
    assert capsys.readouterr().err == "ckpt: No such thing.\nSee 'ckpt dump --help'.\n"
    assert tell(click.FileError("f", "gone"), json=True) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "usage"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_gives_a_traceback_and_70(*, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(ZeroDivisionError("one by zero"), json=as_json) == 70
    told = capsys.readouterr()
    assert "ZeroDivisionError: one by zero" in told.err
    if as_json:
        assert json.loads(told.out)["error"]["exit_code"] == 70


def test_many_problems_are_3() -> None:
    assert Problems(count=2).exit_code == 3


def test_what_an_error_quotes_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;b\x07\nc\x9b2J"
    error = DumpFailed(cause=evil, remedy=evil, log_lines=(evil,), log_path=evil)
    tell(error, json=False)
    told = capsys.readouterr().err
    assert told.count("a\\x1b]0;b\\x07\\nc\\x9b2J") == 4
    assert not {"\x1b", "\x07", "\x9b"} & set(told)
