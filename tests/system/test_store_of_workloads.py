"""The store with real checkpoints: trusted, encrypted, pruned, copied, and cut off in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.processes import await_gone
from harness.subjects import Workload
from harness.waiting import await_condition

pytestmark = pytest.mark.system

KEYS = 100_000
CHANGED = 1_000


def stopped(ckpt: Ckpt, workload: Workload, **environ: str) -> dict[str, Any]:
    pids = workload.pids()
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop", **environ)
    await_gone(pids)
    return dumped


def test_a_host_restores_what_it_signed_and_what_it_was_told_to_trust(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    workload.start("tree")
    dumped = stopped(ckpt, workload)
    other = {"CKPT_KEYS": str(tmp_path / "keys-of-another-host")}
    error = ckpt("restore", dumped["id"], exit_code=44, **other)["error"]
    assert error["slug"] == "untrusted"
    _, _, command = error["hint"].partition("ckpt trust add ")
    ckpt("trust", "add", command.strip("'"), **other)
    ckpt("restore", dumped["id"], **other)
    workload.check()


def test_what_nobody_signed_is_restored_only_where_that_is_a_setting_of_the_host(
    workload: Workload, ckpt: Ckpt
) -> None:
    workload.start("tree")
    dumped = stopped(ckpt, workload)
    shutil.rmtree(ckpt.store / "signatures")
    error = ckpt("restore", dumped["id"], exit_code=44)["error"]
    assert "nobody has signed it" in error["message"]
    # Who can write to the store alone cannot say that signatures are not needed.
    keys = ckpt.state / "keys/unsigned"
    ckpt("store", "set", "--signatures", "optional")
    kept = keys.read_text()
    keys.write_text("")
    ckpt("restore", dumped["id"], exit_code=44)
    keys.write_text(kept)
    ckpt("restore", dumped["id"])
    workload.check()


def test_an_encrypted_store_gives_a_workload_back_with_its_key_and_shows_nothing_without(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    key, new_key = tmp_path / "key", tmp_path / "new-key"
    ckpt("store", "init", "--encrypt", "--key-file", key)
    workload.start("tree")
    dumped = stopped(ckpt, workload, CKPT_KEY_FILE=str(key))
    for path in (path for path in ckpt.store.rglob("*") if path.is_file() and path.parent.name != "tags"):
        assert b"/bin/" not in path.read_bytes(), path
    assert ckpt("list", exit_code=40)["error"]["slug"] == "wrong-key"
    (tmp_path / "wrong").write_text("another secret")
    (tmp_path / "wrong").chmod(0o600)
    refused = ckpt("restore", dumped["id"], exit_code=40, CKPT_KEY_FILE=str(tmp_path / "wrong"))["error"]
    assert "the key that was given is not its key" in refused["message"]
    ckpt("store", "rekey", "--new-key-file", new_key, CKPT_KEY_FILE=str(key))
    ckpt("list", exit_code=40, CKPT_KEY_FILE=str(key))
    assert ckpt("verify", CKPT_KEY_FILE=str(new_key))["ok"]
    ckpt("restore", dumped["id"], CKPT_KEY_COMMAND=f"cat {new_key}")
    workload.check()


def test_pruning_frees_space_and_leaves_the_newest_restorable_also_in_another_store(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    workload.start("tree")
    job = ckpt.new_job_name()
    target = ("--cgroup", workload.cgroup, "--name", job)
    for tag in (("--tag", "pinned"), (), ()):
        ckpt("dump", *target, *tag)
    pids = workload.pids()
    newest = ckpt("dump", *target, "--stop")["id"]
    await_gone(pids)
    would = ckpt("prune", "--keep-last", 1, "--dry-run")
    assert [kept["id"] for kept in would["kept"]] != []
    assert len(would["removed"]) == 2
    assert len(ckpt("list")["checkpoints"]) == 4
    before = _space(ckpt.store)
    done = ckpt("prune", "--keep-last", 1)
    assert {kept["id"] for kept in done["kept"]} == {kept["id"] for kept in would["kept"]}
    assert before - _space(ckpt.store) >= done["freed_bytes"] > 0
    assert ckpt("verify")["ok"]
    other = str(tmp_path / "other")
    sent = ckpt("push", newest, other)
    assert sent["new_bytes"] > 0
    older = ckpt("push", "pinned", other)
    assert older["new_bytes"] < sent["new_bytes"] / 4
    assert ckpt("push", newest, other)["was_there"]
    ckpt("rm", newest, "pinned")
    assert ckpt("store", "stats")["checkpoints"] == 0
    assert list((ckpt.store / "packs").rglob("*/*")) == []
    ckpt("restore", newest, CKPT_STORE=other)
    workload.check()


def test_a_dump_that_is_killed_while_it_stores_leaves_nothing_that_recover_does_not_remove(
    workload: Workload, ckpt: Ckpt
) -> None:
    workload.start("tree")
    job = ckpt.new_job_name()
    target = ("--cgroup", workload.cgroup, "--name", job)
    first = ckpt("dump", *target)["id"]
    packs = _files(ckpt.store / "packs")
    for _ in range(4):
        process = ckpt.start("dump", *target)
        # Anywhere between its lease and its manifest.
        await_condition(
            lambda process=process: any((ckpt.store / "tmp").glob("lease-*")) or process.poll() is not None,
            lambda: "a writer to begin",
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
    ckpt("recover")
    assert not list((ckpt.store / "tmp").iterdir())
    assert ckpt("verify")["ok"]
    found = [each["id"] for each in ckpt("list")["checkpoints"]]
    assert first in found
    if found == [first]:
        assert _files(ckpt.store / "packs") == packs
    workload.check()


def test_a_redis_checkpoint_of_which_one_percent_changed_takes_a_fraction_of_the_changed_pages(
    ckpt: Ckpt, tmp_path: Path
) -> None:
    socket = tmp_path / "redis.sock"
    job = ckpt.new_job_name()
    words = ("--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no")
    ckpt("run", "--detach", "--name", job, "--", "redis-server", *words)
    try:
        await_condition(socket.exists, lambda: "redis to listen")
        _fill(socket, range(KEYS), b"first")
        first = ckpt("dump", job)
        dumps = []
        for number in range(4):
            _fill(socket, range(number, KEYS, KEYS // CHANGED), b"later")
            dumps.append(ckpt("dump", job))
    finally:
        ckpt("stop", job)
    for dumped in dumps:
        assert dumped["new_bytes"] < first["new_bytes"] / 2
        # By page alone it would be about a third of the new bytes; the differences are a few bytes a page.
        assert dumped["stored_bytes"] < dumped["new_bytes"] / 8
    assert ckpt("verify")["ok"]


def _fill(socket: Path, numbers: range, what: bytes) -> None:
    """Set keys through redis's own client; each value is its key's number again and again."""
    lines = (b"SET key:%d %s-%s\r\n" % (number, what, b"%d" % number * 40) for number in numbers)
    command = ["redis-cli", "-s", str(socket), "--pipe"]
    subprocess.run(command, input=b"".join(lines), check=True, stdout=subprocess.DEVNULL, timeout=60)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def _space(folder: Path) -> int:
    return sum(os.lstat(path).st_blocks * 512 for path in folder.rglob("*") if path.is_file())
