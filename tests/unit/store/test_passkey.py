"""The secret that opens a store: where it comes from, and what is no secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from harness.waiting import await_condition

from ckpt.errors import CommandFailed, OsRefused
from ckpt.store.passkey import SECRET_BYTES_MAX, generate_key_file, read_key_file, run_key_command

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")


def key_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> str:
    path = tmp_path / "store.key"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s3cret", b"s3cret"),
        (b"s3cret\n", b"s3cret"),
        (b"s3cret\n\n", b"s3cret\n"),
        (b" two words \r\n", b" two words \r"),
        (b"\x00\xff\n\x00", b"\x00\xff\n\x00"),
        (b"x" * SECRET_BYTES_MAX, b"x" * SECRET_BYTES_MAX),
    ],
)
def test_a_key_file_is_the_secret_but_for_one_newline(tmp_path: Path, content: bytes, secret: bytes) -> None:
    assert read_key_file(key_file(tmp_path, content)) == secret


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"\n", "it is empty"), (b"x" * (SECRET_BYTES_MAX + 1), "more than 65536 bytes")],
)
def test_a_key_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(OsRefused, match=reason):
        read_key_file(key_file(tmp_path, content))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_file_that_others_can_read_is_refused_with_what_to_run(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, b"s3cret\n", mode)
    with pytest.raises(OsRefused, match="others may") as refused:
        read_key_file(path)
    assert refused.value.advice.endswith(f"chmod go-rwx {path}")


@needs_root
def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, b"s3cret\n")
    os.chown(path, 12345, -1)
    with pytest.raises(OsRefused, match="belongs to uid 12345"):
        read_key_file(path)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsRefused, match=r"Could not read .*/none: No such file or directory"):
        read_key_file(str(tmp_path / "none"))
    with pytest.raises(OsRefused, match="Is a directory"):
        read_key_file(str(tmp_path))


def test_a_key_may_come_through_a_pipe() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"s3cret\n")
    os.close(write_end)
    try:
        assert read_key_file(f"/dev/fd/{read_end}") == b"s3cret"
    finally:
        os.close(read_end)


def test_a_generated_key_file_is_private_and_another_each_time(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for name in ("a", "b"):
            generate_key_file(str(tmp_path / name))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    secrets = {read_key_file(str(tmp_path / name)) for name in ("a", "b")}
    assert [len(bytes.fromhex(secret.decode())) for secret in secrets] == [32, 32]


def test_a_key_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = key_file(tmp_path, b"s3cret\n")
    with pytest.raises(OsRefused, match="File exists"):
        generate_key_file(path)
    assert read_key_file(path) == b"s3cret"


def test_a_command_gives_what_it_prints_but_for_one_newline() -> None:
    assert run_key_command("echo 's3cret'; echo noise >&2") == b"s3cret"
    assert run_key_command("printf 'a\\n\\n'") == b"a\n"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("echo s3cret; echo 'no such entry' >&2; exit 3", 3, "no such entry"),
        ("exit 1", 1, "it printed no reason"),
        ("kill -9 $$", -9, "it printed no reason"),
        ("/there/is/none", 127, "not found"),
        ("true", 0, "it printed nothing"),
        ("echo", 0, "it printed nothing"),
    ],
)
def test_a_command_that_fails_gives_no_secret(command: str, status: int, said: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        run_key_command(command)
    assert failed.value.exit_code == 11
    assert (failed.value.command, failed.value.status) == (command, status)
    assert said in failed.value.output
    assert "s3cret" not in failed.value.message.replace(command, "")


def test_a_command_that_never_stops_printing_is_ended() -> None:
    with pytest.raises(CommandFailed, match="more than 65536 bytes"):
        run_key_command("cat /dev/zero")


def test_what_a_command_complains_is_kept_in_part() -> None:
    with pytest.raises(CommandFailed) as failed:
        run_key_command("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 1")
    assert failed.value.output.endswith("xlast")
    assert len(failed.value.output) <= 2000


@pytest.mark.parametrize(
    "command",
    [
        "sleep 987654 & echo $! > {pids}; wait",
        "echo $$ > {pids}; exec sleep 987654 >&- 2>&-",
    ],
)
def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path, command: str) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(CommandFailed, match=r"did not finish within 0\.5 s") as failed:
        run_key_command(command.format(pids=pids), timeout_s=0.5)
    assert failed.value.status == 124
    [pid] = map(int, pids.read_text().split())
    await_condition(lambda: not _runs(pid), "the sleep has ended")


def test_a_command_has_nothing_to_read() -> None:
    with pytest.raises(CommandFailed, match="it printed nothing"):
        run_key_command("cat")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
