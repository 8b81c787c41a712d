"""The logs of failures that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.errors import DumpFailed
from ckpt.host.kept_log import DUMP_LOG, LOG_BYTES_MAX, LOGS_KEPT, keeping_log, kept_logs


def fail(state: Path, log: Path) -> DumpFailed:
    with pytest.raises(DumpFailed) as failed, keeping_log(f"{state}/{DUMP_LOG}"):
        raise DumpFailed(cause="it", remedy=f"The log {log} has the details.", log_path=str(log))
    return failed.value


def test_the_log_outlives_its_directory_and_the_error_names_it(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.1) Error (x.c:1): it")
    error = fail(tmp_path / "state", log)
    assert not log.exists()
    assert Path(error.log_path).read_text() == "(00.1) Error (x.c:1): it"
    assert error.log_path in error.advice
    assert kept_logs(str(tmp_path / "state")) == (error.log_path,)


def test_the_last_ones_are_kept_and_their_beginnings(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    paths = []
    for number in range(LOGS_KEPT + 2):
        log.write_text(str(number))
        os.truncate(log, LOG_BYTES_MAX + 1)
        paths.append(fail(tmp_path, log).log_path)
        os.utime(paths[-1], ns=(number, number))
    assert list(kept_logs(str(tmp_path))) == paths[:1:-1]
    assert {os.stat(path).st_size for path in paths[2:]} == {LOG_BYTES_MAX}


def test_a_failure_without_a_log_names_none(tmp_path: Path) -> None:
    error = fail(tmp_path, tmp_path / "none")
    assert error.log_path == ""
    assert kept_logs(str(tmp_path)) == ()
