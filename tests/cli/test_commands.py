"""The commands, from the call to what they print: the world is a fake, the store a real one on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from fakes import world as fake
from fakes.calls import dump_ports, restore_ports
from fakes.checkpoints import a_checkpoint

from ckpt.cli import suggestions, wiring
from ckpt.cli.group import ckpt
from ckpt.cli.main import main
from ckpt.errors import DumpFailed, NoSuchTarget
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import ProcessRef
from ckpt.host.recovery import RecoveryAction
from ckpt.store.opening import open_local
from ckpt.units import CheckpointId, JobName, Nanoseconds, Pid


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> fake.World:
    world = fake.World()
    monkeypatch.setattr(wiring, "dump_ports", lambda _place, _announce: dump_ports(world))
    monkeypatch.setattr(wiring, "restore_ports", lambda _place, _announce, **_how: restore_ports(world))
    return world


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def kept(tmp_path: Path, number: int = 1, job: str | None = "web") -> CheckpointId:
    (tmp_path / "core-1.img").write_bytes(b"%d" % number)
    store = open_local(str(tmp_path / "store"))
    with store.writer() as writer:
        file = writer.add_file(str(tmp_path / "core-1.img"), "core-1.img")
        return writer.commit(a_checkpoint(file, created_ns=number, job=job))


def test_a_dump_is_told_in_json(world: fake.World, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, "dump", "web", "--tag", "gold", "--message", "why")
    assert document["job"] == "web"
    assert [tree["pid"] for tree in document["trees"]] == [100, 200]
    assert world.alive
    assert list(world.tags) == ["gold"]
    [checkpoint] = world.manifests.values()
    assert (checkpoint.message, checkpoint.options.ghost_limit_bytes) == ("why", 64 << 20)


def test_a_dump_is_told_to_people(world: fake.World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--pid", "100", "--name", "db"]) == 0
    assert "db\n  4 process(es) in 2 trees, running on\n" in capsys.readouterr().out
    assert main(["-q", "dump", "--pid", "100"]) == 0
    assert capsys.readouterr().out == f"{list(world.manifests)[-1]}\n"


def test_a_dump_with_stop_kills(world: fake.World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "dump", "web", "--stop")["stopped"]
    assert not world.alive


def test_crius_refusal_is_21(
    world: fake.World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise DumpFailed(cause="a socket", log_lines=("Error (x.c:1): y",), log_path="/l")

    monkeypatch.setattr(fake.FakeTreeDump, "run", refuse)
    document = run(capsys, "dump", "web", code=21)
    assert document["error"]["log_lines"] == ["Error (x.c:1): y"]
    assert not world.frozen


def test_a_restore_is_told_in_json(world: fake.World, capsys: pytest.CaptureFixture[str]) -> None:
    dumped = run(capsys, "dump", "web")
    document = run(capsys, "restore", dumped["id"], "--time", "continue")
    assert (document["id"], document["job"], document["pid"]) == (dumped["id"], "web", 100)
    assert (document["pids"], document["cgroup"]) == ([100, 200], "/cgroup/restored")


def test_copies_are_named_and_listed(world: fake.World, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "dump", "web")
    document = run(capsys, "restore", "web@latest", "--pids", "new", "--count", "2")
    assert [each["job"] for each in document["restored"]] == ["web-1", "web-2"]
    assert document["problems"] == []


def test_a_copy_that_fails_does_not_stop_the_others(
    world: fake.World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "dump", "web")
    session = fake.FakeRestorer.session

    def refuse_second(self: fake.FakeRestorer, **named: Any) -> Any:
        if named["job"] == "web-2":
            raise NoSuchTarget(kind="luck", name="today")
        return session(self, **named)

    monkeypatch.setattr(fake.FakeRestorer, "session", refuse_second)
    document = run(capsys, "restore", "web@latest", "--pids", "new", "--count", "3", code=3)
    assert [each["job"] for each in document["restored"]] == ["web-1", "web-3"]
    assert [each["subject"] for each in document["problems"]] == ["web-2"]


def test_list_show_tag_and_rm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = kept(tmp_path, 1), kept(tmp_path, 2, job="db")
    assert [each["id"] for each in run(capsys, "list")["checkpoints"]] == [first, second]
    assert [each["id"] for each in run(capsys, "list", "--job", "db")["checkpoints"]] == [second]
    assert run(capsys, "tag", first[:8], "gold") == {"id": first, "tag": "gold"}
    assert run(capsys, "show", "gold")["id"] == first
    assert run(capsys, "rm", "gold", first)["removed"] == [first]
    assert run(capsys, "show", first, code=41)["error"]["slug"] == "missing"


def test_lists_for_people(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["list"]) == 0
    assert capsysbinary.readouterr().out == b""
    first = kept(tmp_path)
    assert main(["list"]) == 0
    header, row = capsysbinary.readouterr().out.decode().splitlines()
    assert header.split()[:3] == ["ID", "JOB", "CREATED"]
    assert row.split()[:2] == [first[:12], "web"]
    assert main(["show", first]) == 0
    # A path in it is not UTF-8.
    assert first.encode() in capsysbinary.readouterr().out


def test_verify_finds_damage_and_gives_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = kept(tmp_path)
    document = run(capsys, "verify", checkpoint)
    assert (document["ok"], document["checked_chunks"]) == (True, 1)
    [pack] = [path for path in (tmp_path / "store" / "packs").rglob("*") if path.is_file()]
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[-6] ^= 1
    pack.write_bytes(content)
    document = run(capsys, "verify", code=3)
    assert not document["ok"]
    assert document["problems"][0].keys() == {"slug", "subject", "message"}


def test_a_damaged_manifest_is_named_by_list_which_gives_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = kept(tmp_path, 1), kept(tmp_path, 2)
    path = tmp_path / "store" / "manifests" / damaged
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-3])
    document = run(capsys, "list", code=3)
    assert [each["id"] for each in document["checkpoints"]] == [whole]
    assert [each["subject"] for each in document["problems"]] == [damaged]


def test_an_unknown_kind_of_store_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", "s3://bucket/x", "list"]) == 40
    assert "ckpt knows no stores of the kind s3://" in capsys.readouterr().err


def test_a_file_url_is_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = kept(tmp_path)
    assert main(["--store", f"file://{tmp_path}/store", "-q", "list"]) == 0
    assert capsys.readouterr().out == f"{checkpoint}\n"


def test_recover_tells_what_it_did_and_what_it_could_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "recover", lambda: ())
    assert run(capsys, "recover") == {"actions": [], "problems": []}
    done = RecoveryAction(subject="/cg", done="thawed")
    failed = RecoveryAction(subject="/x", done="could not Killing", problem="busy")
    monkeypatch.setattr(wiring, "recover", lambda: (done, failed))
    document = run(capsys, "recover", code=3)
    assert document["actions"] == [{"subject": "/cg", "done": "thawed"}]
    assert [problem["subject"] for problem in document["problems"]] == ["/x"]


@pytest.fixture
def job(tmp_path: Path) -> JobRecord:
    """A job that ended with 5 and wrote to its log."""
    registry = JobRegistry(str(tmp_path / "state"))
    name = JobName("web")
    directory = registry.prepare(name)
    nobody = ProcessRef(pid=Pid(2**22 + 1), start_ticks=1)
    record = JobRecord(
        name=name,
        argv=("serve", "--fast"),
        cwd="/",
        created=Nanoseconds(1),
        boot_id="another boot",
        cgroups=("/sys/fs/cgroup/nothing-here",),
        root=nobody,
        command=nobody,
        shim=nobody,
        log=f"{directory}/log",
    )
    registry.save(record)
    Path(record.log).write_text("hello\n")
    ended = {"pid": nobody.pid, "shim": nobody.pid, "code": 5, "signal": None, "when_ns": 10**9}
    Path(registry.exit_path(name)).write_text(json.dumps(ended))
    return record


def test_ps_joins_jobs_and_checkpoints(
    job: JobRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, 1)
    latest = kept(tmp_path, 2)
    [document] = run(capsys, "ps")["jobs"]
    assert document.keys() >= {"name", "state", "pid", "cgroup", "memory_bytes", "checkpoints", "latest"}
    assert (document["state"], document["pid"], document["exit_code"]) == ("exited", None, 5)
    assert (document["checkpoints"], document["latest"]) == (2, latest)
    assert main(["ps"]) == 0
    assert "exited (5)" in capsys.readouterr().out


def test_ps_makes_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ps") == {"jobs": []}
    assert not (tmp_path / "store").exists()


def test_wait_gives_the_jobs_exit_code(job: JobRecord, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, "wait", "web", code=5)
    assert document == {"job": "web", "exit_code": 5, "signal": None, "ended": "1970-01-01T00:00:01.000000Z"}


def test_logs_prints_what_the_job_wrote(job: JobRecord, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "web"]) == 0
    assert capfd.readouterr().out == "hello\n"
    assert main(["logs", "-f", "web"]) == 0
    assert capfd.readouterr().out == "hello\n"
    assert run(capfd, "logs", "web")["stdout"] == "hello\n"


def test_a_job_that_does_not_run_cannot_be_stopped_but_removed(
    job: JobRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "stop", "web", code=62)["error"]["slug"] == "wrong-state"
    assert run(capsys, "rm-job", "web") == {"job": "web", "stopped": False}
    assert run(capsys, "rm-job", "web", code=63)["error"]["slug"] == "no-such-target"


def test_a_job_whose_record_is_damaged_can_be_removed(
    job: JobRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state" / "jobs" / "web" / "job.json").write_text("{")
    assert run(capsys, "wait", "web", code=42)["error"]["slug"] == "corrupt"
    assert run(capsys, "rm-job", "web", "--force") == {"job": "web", "stopped": False}


def test_the_shell_is_offered_tags_jobs_ids_and_jobs_of_this_host(
    job: JobRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = kept(tmp_path, job="shop")
    run(capsys, "tag", checkpoint, "gold")
    context, parameter = click.Context(ckpt), click.Argument(["ref"])
    assert suggestions.refs(context, parameter, "") == sorted([checkpoint[:12], "gold", "shop"])
    assert suggestions.refs(context, parameter, "go") == ["gold"]
    assert suggestions.jobs(context, parameter, "w") == ["web"]


def test_no_store_is_no_failure_for_the_shell(tmp_path: Path) -> None:
    assert suggestions.refs(click.Context(ckpt), click.Argument(["ref"]), "") == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("words", [["stop", "x"], ["wait", "x"], ["logs", "x"], ["rm-job", "x"]])
def test_an_unknown_job_is_63(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *words, code=63)["error"]["exit_code"] == 63


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--", "true"],
        ["ps"],
        ["stop", "x"],
        ["wait", "x"],
        ["logs", "x"],
        ["rm-job", "x"],
        ["dump", "--pid", "7"],
        ["restore", "x"],
        ["recover"],
    ],
    ids=lambda words: words[0],
)
def test_without_root_it_is_10(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(words) == 10
    assert f"ckpt: 'ckpt {words[0]}' needs root, and this is uid 1000." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["web"], "and then the host"),
        (["web", "host", "--ship", ""], "--ship needs a path"),
        (["web", "host", "--lazy", "--pre-copy", "0"], "choose one"),
        (["web", "host", "--allow", "no-such"], "There is no rule no-such."),
        (["web", "host", "--resume", "0123456789abcdef"], "--resume ID stands alone"),
    ],
)
def test_a_migration_that_is_no_call_is_refused_before_a_connection(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run(capsys, "migrate", *words, code=2)["error"]
    assert says in error["message"]
    assert error["hint"]


def test_what_may_stand_before_the_command_may_stand_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "elsewhere")
    assert main(["--store", place, "-q", "--json", "list"]) == 0
    before = capsys.readouterr().out
    assert main(["list", "--store", place, "-q", "--json"]) == 0
    assert capsys.readouterr().out == before
    assert main(["-v", "list", "-q"]) == 2
    assert "exclude each other" in capsys.readouterr().err
