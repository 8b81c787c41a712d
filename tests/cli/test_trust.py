"""`ckpt trust`, and where the options of ckpt may stand around the words of a group."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest

from ckpt.cli import trust
from ckpt.cli.call import Call, make_command
from ckpt.cli.group import COMMANDS
from ckpt.cli.main import main
from ckpt.store.keyring import KeyRing
from ckpt.store.publickey import TrustedKey
from ckpt.store.sealing import SigningKey


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    for name in ("CKPT_KEYS", "CKPT_KEY_FILE", "CKPT_KEY_COMMAND"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def another() -> TrustedKey:
    return TrustedKey(public=SigningKey.generate().public, comment="")


def test_what_show_prints_is_what_add_takes_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = said(capsys, "trust", "show")
    shown = run(capsys, "trust", "show")
    assert line.startswith(f"{shown['key']} ")
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "other host"))
    added = run(capsys, "trust", "add", line.rstrip("\n"))
    assert added == shown
    assert [key["own"] for key in run(capsys, "trust", "list")["keys"]] == [False]


def test_the_words_of_a_key_need_no_quotes_and_may_come_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = another(), another()
    run(capsys, "trust", "add", *first.text.split(), "web", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{second.text}\n"))
    run(capsys, "trust", "add", "-", "--comment", "web 2")
    keys = run(capsys, "trust", "list")["keys"]
    assert [(key["fingerprint"], key["comment"]) for key in keys] == [
        (first.fingerprint, "web 1"),
        (second.fingerprint, "web 2"),
    ]


def test_the_list_tells_which_key_is_this_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "trust", "list") == {"keys": []}
    own = run(capsys, "trust", "show")
    other = another()
    said(capsys, "trust", "add", other.text)
    assert run(capsys, "trust", "list")["keys"] == [
        {**own, "own": True},
        {"fingerprint": other.fingerprint, "key": other.key_text, "comment": "", "own": False},
    ]
    table = said(capsys, "trust", "list").splitlines()
    assert table[0].split() == ["FINGERPRINT", "OWN", "COMMENT"]
    assert "this host" in table[1]
    assert said(capsys, "-q", "trust", "list") == f"{own['fingerprint']}\n{other.fingerprint}\n"


def test_a_key_is_removed_by_the_beginning_of_its_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    key = another()
    said(capsys, "trust", "add", key.text, "--comment", "web1")
    assert (
        said(capsys, "trust", "rm", key.fingerprint[:8]) == f"{key.fingerprint} (web1) is trusted no more\n"
    )
    assert run(capsys, "trust", "rm", key.fingerprint, code=63)["error"]["slug"] == "no-such-target"


def test_a_mistake_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ckpt trust show" in said(capsys, "trust", "add", "ssh-ed25519 AAAA", code=2)
    assert "ckpt trust list" in said(capsys, "trust", "rm", "web1", code=2)
    assert run(capsys, "trust", "add", "nonsense", code=2)["error"]["exit_code"] == 2


def test_the_keys_are_where_the_environment_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run(capsys, "trust", "show")
    assert KeyRing(str(tmp_path / "state/keys"), own_comment="").own_key().key_text == shown["key"]
    monkeypatch.setenv("CKPT_KEYS", str(tmp_path / "keys"))
    assert run(capsys, "trust", "show")["key"] != shown["key"]
    assert (tmp_path / "keys/signing.key").exists()


def test_a_trust_file_that_others_may_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "trust", "show")
    (tmp_path / "state/keys/trusted").chmod(0o666)
    for words in (("list",), ("add", another().text), ("rm", "0123")):
        error = run(capsys, "trust", *words, code=10)["error"]
        assert error["message"].endswith("others may write to it (mode 0666).")
        assert "chmod go-w" in error["hint"]


def test_fingerprints_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    key = another()
    said(capsys, "trust", "add", key.text)
    context, parameter = click.Context(trust.rm_command), trust.rm_command.params[0]
    assert trust.fingerprints(context, parameter, key.fingerprint[:3]) == [key.fingerprint]
    assert trust.fingerprints(context, parameter, "x") == []


@pytest.mark.parametrize("words", [("trust",), ("trust", "nonsense"), ("trust", "list", "too", "much")])
def test_half_a_call_names_the_help_to_read(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "See 'ckpt trust" in said(capsys, *words, code=2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of a command that only notes them."""
    calls: list[Call] = []

    @make_command("list", example="ckpt trust list")
    @click.pass_obj
    def command(call: Call) -> None:
        calls.append(call)

    monkeypatch.setattr(trust, "list_command", command)
    return calls


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_options_of_ckpt_may_stand_anywhere(seen: list[Call], place: int) -> None:
    words = ["trust", "list"]
    words[place:place] = ["--json", "--store", "/s", "-v", "--key-file", "/k"]
    assert main(words) == 0
    [call] = seen
    assert (call.json, call.store, call.key_file, call.key_command) == (True, "/s", "/k", None)
    assert call.output.verbose


def test_the_keys_source_comes_from_the_environment_unless_an_option_says(
    seen: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_KEY_FILE", "/from/environment")
    assert main(["trust", "list"]) == 0
    assert main(["--key-command", "before", "trust", "list"]) == 0
    assert main(["trust", "list", "--key-command", "after"]) == 0
    assert [(call.key_file, call.key_command) for call in seen] == [
        ("/from/environment", None),
        (None, "before"),
        (None, "after"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--key-file", "f", "--key-command", "c", "trust", "list"),
        ("--key-file", "f", "trust", "--key-command", "c", "list"),
        ("trust", "list", "--key-file", "f", "--key-command", "c"),
    ],
)
def test_two_sources_of_the_key_are_one_too_many(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], seen: list[Call]
) -> None:
    assert "--key-file and --key-command exclude each other" in said(capsys, *words, code=2)
    assert seen == []


def test_a_group_is_in_the_table_of_ckpt() -> None:
    assert COMMANDS["trust"][0] == "ckpt.cli.trust"
