"""A report of a host with a job that has secrets."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from harness.command import Ckpt

pytestmark = pytest.mark.system

ARGUMENT = "argument-nobody-shall-see"
VARIABLE = "variable-nobody-shall-see"
PASSWORD = "password-nobody-shall-see"


def contents_of(report: Path) -> dict[str, str]:
    with tarfile.open(report) as archive:
        return {
            member.name.removeprefix("ckpt-report/"): found.read().decode()
            for member in archive.getmembers()
            if (found := archive.extractfile(member)) is not None
        }


def test_a_report_has_what_matters_and_secrets_only_if_asked_for(ckpt: Ckpt, tmp_path: Path) -> None:
    name = ckpt.new_job_name()
    command = ["sh", "-c", "sleep 1000; :", "sh", ARGUMENT, "--password", PASSWORD]
    ckpt("run", "--detach", "--name", name, "--", *command, TOWN=VARIABLE)
    try:
        logs = ckpt.state / "logs"
        logs.mkdir()
        (logs / "failed-dump-1.log").write_text(
            f"(00.1) Error (x.c:1): {ARGUMENT} {VARIABLE} {PASSWORD} of no use"
        )

        document = ckpt("doctor", "--report", tmp_path / "report.tgz")
        assert document["report"]["left_out"]
        found = contents_of(tmp_path / "report.tgz")
        assert [entry["name"] for entry in document["report"]["contents"]] == list(found)
        assert all(each in found["MANIFEST.txt"] for each in found if each != "MANIFEST.txt")
        assert "command lines of jobs" in found["MANIFEST.txt"]
        job = json.loads(found["jobs.json"])[0]
        assert (job["name"], job["state"]) == (name, "running")
        assert json.loads(found["versions.json"])["kernel"] == os.uname().release
        assert json.loads(found["doctor.json"])
        assert "exit code" in found["criu-check.txt"]
        assert "of no use" in found["logs/failed-dump-1.log"]
        assert not any(secret in text for text in found.values() for secret in (ARGUMENT, VARIABLE, PASSWORD))
        assert os.stat(tmp_path / "report.tgz").st_mode & 0o777 == 0o600

        ckpt("doctor", "--report", tmp_path / "all.tgz", "--with-secrets")
        found = contents_of(tmp_path / "all.tgz")
        job = json.loads(found["jobs.json"])[0]
        assert ARGUMENT in job["argv"]
        assert f"TOWN={VARIABLE}" in job["environment"]
        assert ARGUMENT in found["logs/failed-dump-1.log"]
        assert not any(PASSWORD in text for text in found.values())

        before = (tmp_path / "all.tgz").read_bytes()
        refused = ckpt("doctor", "--report", tmp_path / "all.tgz", exit_code=62)
        assert str(tmp_path / "all.tgz") in refused["error"]["message"]
        assert (tmp_path / "all.tgz").read_bytes() == before
    finally:
        ckpt("stop", name)


def test_a_report_that_cannot_be_written_says_so_and_secrets_need_one(ckpt: Ckpt, tmp_path: Path) -> None:
    refused = ckpt("doctor", "--report", tmp_path / "none/report.tgz", exit_code=10)
    assert refused["error"]["slug"] == "os-refused"
    ckpt("doctor", "--with-secrets", exit_code=2)


def test_the_command_that_prints_a_stores_secret_and_what_it_says_are_never_in_it(
    ckpt: Ckpt, tmp_path: Path
) -> None:
    ckpt("store", "init", "--encrypt", "--key-file", tmp_path / "key")
    command = f"echo {VARIABLE} >&2; exit 3 # {ARGUMENT}"
    ckpt(
        "doctor",
        "--report",
        tmp_path / "report.tgz",
        "--with-secrets",
        exit_code=13,
        CKPT_KEY_COMMAND=command,
    )
    found = contents_of(tmp_path / "report.tgz")
    assert json.loads(found["store.json"])["error"]["slug"] == "command-failed"
    assert not any(secret in text for text in found.values() for secret in (ARGUMENT, VARIABLE))
