"""`ckpt memory` and `ckpt export --format core`: what does not go together is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from ckpt.cli.main import main
from ckpt.cli.memory import address_range


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x1000-0x2000", (0x1000, 0x2000)),
        ("0x1000+16", (0x1000, 0x1010)),
        ("4096-8192", (4096, 8192)),
        ("4096+0x10", (4096, 4112)),
        ("0xFFFFFFFFFF600000+0x1000", (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000)),
    ],
)
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert address_range(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x1000",
        "0x1000-",
        "0x2000-0x1000",
        "0x1000+0",
        "7f00-7f10",
        "-1-5",
        "0x1+18446744073709551616",
        "0x1 - 0x2",
        "0x11111111111111111-0x2",
        "٣-٤",
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(click.BadParameter):
        address_range(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memory", "x", "--search", "a", "--strings"), "exclude each other"),
        (("memory", "x", "--range", "0x1+1", "--search", "a"), "exclude each other"),
        (("memory", "x", "--raw"), "--raw and -o need --range"),
        (("memory", "x", "-o", "f"), "--raw and -o need --range"),
        (("memory", "x", "--hex"), "need --search"),
        (("memory", "x", "--search", "00", "--hex", "--regex"), "--hex and --regex exclude"),
        (("memory", "x", "--search", "0g", "--hex"), "'0g' is not bytes"),
        (("memory", "x", "--search", "(", "--regex"), "'(' is no regular expression"),
        (("memory", "x", "--search", ""), "PATTERN is empty"),
        (("export", "x", "-", "--format", "core"), "A core file has holes"),
        (("export", "x", "f", "--pid", "7"), "--pid needs --format core"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]["message"]
