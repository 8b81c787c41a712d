"""What users may write for durations, sizes, names and targets."""

from __future__ import annotations

import json

import click
import pytest

from ckpt.cli.main import main
from ckpt.cli.parameters import duration, duration_above_zero, job_name, size, tag_name, target_ref
from ckpt.cli.run_options import default_name
from ckpt.codec.names import refuse_label
from ckpt.errors import BadDuration, BadName
from ckpt.model.workload import TargetKind


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("500ms", 500_000_000),
        ("10s", 10**10),
        ("5m", 3 * 10**11),
        ("2h", 72 * 10**11),
        ("1.5s", 1_500_000_000),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-1s", "1d", "٣s", "1e3s", "9999999999s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadDuration):
        duration(text)


def test_a_timeout_of_zero_is_refused() -> None:
    with pytest.raises(click.BadParameter):
        duration_above_zero("0s")


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("64K", 65536), ("64KiB", 65536), ("64M", 2**26), ("1g", 2**30), ("10B", 10)],
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "64X", "M", "1000000000000000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        size(text)


@pytest.mark.parametrize("text", ["", "../x", "a/b", "-a", ".a", "a" * 65, "a b", "ä"])
def test_what_is_no_name(text: str) -> None:
    for read in (job_name, tag_name):
        with pytest.raises(BadName):
            read(text)


def test_exactly_one_target() -> None:
    assert target_ref(7, None, None).kind is TargetKind.PID
    assert target_ref(None, "a/b", None).kind is TargetKind.CGROUP
    assert target_ref(None, None, "web").kind is TargetKind.JOB
    for given in ((None, None, None), (7, "a", None), (7, None, "web"), (None, "a", "web"), (7, "a", "web")):
        with pytest.raises(click.UsageError):
            target_ref(*given)


@pytest.mark.parametrize("program", ["/usr/bin/python3", "./a b", "---", "é", "x" * 300])
def test_a_default_name_is_a_name_and_never_twice_the_same(program: str) -> None:
    first, second = default_name(program), default_name(program)
    assert not refuse_label(first)
    assert first != second


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["-v", "-q", "list"],
        ["dump"],
        ["dump", "--pid", "7", "web"],
        ["dump", "--pid", "x"],
        ["dump", "--pid", "0"],
        ["dump", "--pid", "7", "--freeze-timeout", "5"],
        ["dump", "--pid", "7", "--ghost-limit", "5G"],
        ["dump", "--pid", "7", "--tag", "a/b"],
        ["restore"],
        ["restore", "x", "--time", "never"],
        ["restore", "x", "--count", "2"],
        ["restore", "x", "--count", "2", "--pids", "new", "--attach"],
        ["restore", "x", "--count", "2", "--pids", "new", "--cgroup", "/x"],
        ["restore", "x", "--lazy", "--attach"],
        ["run"],
        ["run", "--every", "5", "--", "true"],
        ["run", "--keep", "2", "--", "true"],
        ["run", "--resume", "--", "true"],
        ["rm"],
        ["tag", "x"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_in_text_and_in_json(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ckpt: ")
    assert main(["--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_json_after_the_command_counts_for_errors_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--pid", "x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "usage"


def test_json_in_the_foreground_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["run", "--json", "--", "true"]) == 2
    assert "--detach" in capsys.readouterr().out


def test_what_follows_cmd_belongs_to_cmd(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def start(_job: str, words: tuple[str, ...], **_options: object) -> None:
        seen.append(words)
        raise BadName(kind="job", name="stop here")

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("ckpt.cli.wiring.start_job", start)
    main(["run", "ls", "--json", "-v"])
    main(["run", "--detach", "--", "ls", "--json"])
    assert seen == [("ls", "--json", "-v"), ("ls", "--json")]
    # CMD's --json is not ckpt's.
    assert capsys.readouterr().out == ""
