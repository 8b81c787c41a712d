"""A guard answers memory pressure: on real cgroups, with real jobs that grow, and a kernel that would kill them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.filesystems import mounted
from harness.memory import MIB, Guard, MemoryJob, expected_digest, memory_cgroups, set_limit
from harness.processes import is_dead, kill, marked
from harness.traces import Traces
from harness.waiting import await_condition
from real.migrating import MigrationBed

from ckpt.host import cgroups
from ckpt.host.guard import controls
from ckpt.host.jobs import JobRegistry
from ckpt.host.supervision import supervisor_of
from ckpt.units import JobName

pytestmark = pytest.mark.system

StartGuard = Callable[..., Guard]


@pytest.fixture
def box(traces: Traces) -> Iterator[Path]:
    """A memory cgroup of the test's own."""
    if controls.hierarchy() is None:
        pytest.skip("no hierarchy accounts memory")
    with memory_cgroups(traces) as own:
        yield own


@pytest.fixture
def guard(ckpt: Ckpt, box: Path) -> Iterator[StartGuard]:
    """Starts guards."""
    started: list[Guard] = []

    def start(*arguments: object, **environ: str) -> Guard:
        started.append(Guard(ckpt, *arguments, **environ))
        return started[-1]

    yield start
    for each in started:
        each.close()


def kills_nobody(cgroup: Path) -> bool:
    """Whether the kernel does not kill at the limit of a version-1 cgroup."""
    return "oom_kill_disable 1" in (cgroup / "memory.oom_control").read_text()


def policy_file(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_a_job_that_grows_to_its_limit_is_checkpointed_comes_back_with_more_and_ends_right(
    ckpt: Ckpt, traces: Traces, guard: StartGuard
) -> None:
    job = MemoryJob(ckpt, traces, 80, limit="64M")
    guarding = guard("--job", job.name)
    guarding.await_event("watch")
    job.go()
    step = guarding.await_event("step", step="checkpoint", result="done")
    assert job.state() == "stopped"
    assert ckpt("show", step["id"])["job"] == job.name
    assert controls.limit_of(str(job.cgroup)) == 64 * MIB, "what CRIU needed was given back"
    set_limit(job.cgroup, 256 * MIB)
    guarding.await_event("resumed", id=step["id"])
    await_condition(lambda: "digest" in job.log(), lambda: job.log()[-60:])
    assert job.log().split()[-1] == expected_digest(80)
    assert [line for line in job.log().splitlines() if line.startswith("has")] == [
        f"has {number}" for number in range(1, 81)
    ]
    guarding.await_event("ended")
    assert guarding.process.wait(10) == 0


def test_a_job_that_waits_at_its_limit_for_memory_is_checkpointed_and_nobody_was_killed(
    ckpt: Ckpt, traces: Traces, guard: StartGuard
) -> None:
    job = MemoryJob(ckpt, traces, 60, limit="32M", pause_s=0)
    guarding = guard("--job", job.name, "--at", "oom")
    guarding.await_event("watch")
    job.go()
    guarding.await_event("pressure", reason="oom")
    guarding.await_event("step", step="checkpoint", result="done")
    assert "oom_kill 0" in _oom_kills(job.cgroup)
    # The guard goes, the operator comes, and the next guard finds who waits.
    assert guarding.end() == 0
    set_limit(job.cgroup, 128 * MIB)
    again = guard("--job", job.name)
    again.await_event("resumed")
    await_condition(lambda: expected_digest(60) in job.log(), lambda: job.log()[-60:])


def _oom_kills(cgroup: Path) -> str:
    name = "memory.events" if controls.is_version_2(str(cgroup)) else "memory.oom_control"
    return (cgroup / name).read_text()


def test_a_checkpoint_under_pressure_brings_the_limit_back_as_it_was_before(
    ckpt: Ckpt, traces: Traces, box: Path
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="64M", pause_s=0, stays=True)
    job.go()
    job.await_size(40)
    document = ckpt("guard", "--job", job.name, "--at", "60%", "--once")
    assert [each["event"] for each in document["events"]][-1] == "relieved"
    cgroups.remove(str(job.cgroup))
    ckpt("restore", job.name)
    assert controls.limit_of(str(job.cgroup)) == 64 * MIB
    assert job.state() == "running"
    # Both cgroups go with the job.
    ckpt("stop", job.name)
    ckpt("rm-job", job.name)
    assert not job.cgroup.exists()
    assert not job.frozen.exists()


def test_a_guard_that_is_killed_leaves_a_kernel_that_kills_and_no_job_that_waits_for_ever(
    ckpt: Ckpt, traces: Traces, guard: StartGuard
) -> None:
    job = MemoryJob(ckpt, traces, 8, limit="64M", pause_s=0, stays=True)
    if controls.is_version_2(str(job.cgroup)):
        pytest.skip("version 2 has no switch for it")
    guarding = guard("--job", job.name)
    guarding.await_event("watch")
    assert kills_nobody(job.cgroup)
    guarding.process.kill()
    await_condition(lambda: not kills_nobody(job.cgroup), "the guardian to set it back")
    # Its guardian may be killed, too: then it is for 'ckpt recover'.
    guarding = guard("--job", job.name)
    guarding.await_event("watch")
    kill([pid for pid in marked(traces.mark) if _name(pid) == "ckpt-guardian"])
    guarding.process.kill()
    guarding.process.wait()
    assert kills_nobody(job.cgroup)
    ckpt("recover")
    assert not kills_nobody(job.cgroup)
    # One that is asked to end does so itself.
    guarding = guard("--job", job.name)
    guarding.await_event("watch")
    assert kills_nobody(job.cgroup)
    assert guarding.end() == 0
    assert not kills_nobody(job.cgroup)


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@pytest.mark.parametrize("phase", ["frozen", "durable", "killed"])
def test_wherever_a_guard_is_killed_the_job_lives_or_the_next_guard_brings_it_back(
    ckpt: Ckpt, traces: Traces, guard: StartGuard, phase: str
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="48M", pause_s=0, stays=True)
    job.go()
    job.await_size(40)
    dying = guard("--job", job.name, "--at", "70%", CKPT_FAILPOINT=phase)
    assert dying.process.wait(30) == -signal.SIGKILL
    await_condition(lambda: not list((ckpt.state / "operations").iterdir()), "the guardians to be done")
    lives = job.has_gone_on()
    assert lives == (phase != "killed")
    assert controls.limit_of(str(job.cgroup)) == 48 * MIB
    if not lives:
        set_limit(job.cgroup, 128 * MIB)
        guard("--job", job.name).await_event("resumed")
        await_condition(job.has_gone_on, "the job to go on")


@pytest.mark.parametrize("end", [("stop",), ("dump", "--stop")])
def test_a_job_that_went_on_after_its_guard_died_and_was_ended_on_purpose_is_not_run_again(
    ckpt: Ckpt, traces: Traces, guard: StartGuard, end: tuple[str, ...]
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="48M", pause_s=0, stays=True)
    job.go()
    job.await_size(40)
    dying = guard("--job", job.name, "--at", "70%", CKPT_FAILPOINT="durable")
    assert dying.process.wait(30) == -signal.SIGKILL
    await_condition(lambda: not list((ckpt.state / "operations").iterdir()), "the guardians to be done")
    set_limit(job.cgroup, 128 * MIB)
    ckpt(end[0], job.name, *end[1:])
    again = guard("--job", job.name)
    if end == ("stop",):  # after it nobody knows that it waited
        assert again.process.wait(30) == 62
    else:
        again.await_event("ended")
        assert again.process.wait(10) == 0
    assert job.state() in {"exited", "stopped"}


def test_a_supervised_job_is_supervised_again_when_it_is_back(
    ckpt: Ckpt, traces: Traces, guard: StartGuard
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="48M", pause_s=0, stays=True, options=("--every", "1h"))
    first = supervisor_of(JobRegistry(str(ckpt.state)), JobName(job.name))
    assert first is not None
    guarding = guard("--job", job.name)
    guarding.await_event("watch")
    job.go()
    guarding.await_event("step", step="checkpoint", result="done")
    await_condition(lambda: is_dead(first), "its supervisor to end")
    set_limit(job.cgroup, 128 * MIB)
    guarding.await_event("resumed")
    second = supervisor_of(JobRegistry(str(ckpt.state)), JobName(job.name))
    assert second not in {None, first}
    assert job.has_gone_on()
    # Nobody guards it any more: the same command line, with more memory.
    assert guarding.end() == 0
    ckpt("dump", job.name, "--stop")
    await_condition(lambda: second is None or is_dead(second), "its supervisor to end")
    command = ("--every", "1h", "--resume", "--memory-max", "256M", "--", "true")
    assert ckpt("run", "--detach", "--name", job.name, *command)["restored_from"]
    assert controls.limit_of(str(job.cgroup)) == 256 * MIB


def test_a_store_that_is_full_loses_no_job_and_leaves_none_frozen(
    ckpt: Ckpt, traces: Traces, box: Path, tmp_path: Path
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="48M", pause_s=0, stays=True)
    job.go()
    job.await_size(40)
    with mounted("tmpfs", tmp_path) as full:
        (full / "ballast").write_bytes(b"x" * (62 * MIB))
        document = ckpt(
            "guard", "--store", full / "store", "--job", job.name, "--at", "70%", "--once", exit_code=3
        )
    steps = [each for each in document["events"] if each["event"] == "step"]
    assert steps[-1]["step"] == "checkpoint"
    assert steps[-1]["error"]["slug"] == "no-space"
    assert job.has_gone_on()
    assert job.state() == "running"


def test_victims_go_in_the_operators_order_until_the_pressure_in_the_cgroup_above_is_gone(
    ckpt: Ckpt, traces: Traces, box: Path, guard: StartGuard
) -> None:
    set_limit(box, 128 * MIB)
    jobs = [MemoryJob(ckpt, traces, size, pause_s=0, stays=True) for size in (50, 30, 20)]
    for job in jobs:
        place = box / job.name
        place.mkdir()
        for pid in cgroups.processes_below(str(job.frozen)):
            cgroups.add_process(str(place), pid)
    large, middle, small = jobs
    policy = policy_file(traces.folder, f'victims = ["{small.name}", "{middle.name}", "*"]\nat = "75%"\n')
    for job in jobs:
        job.go()
    for job, size in zip(jobs, (50, 30, 20), strict=True):
        job.await_size(size)
    plan = ckpt("guard", "--cgroup", box.name, "--policy", policy, "--dry-run")
    assert [each["name"] for each in plan["watched"][0]["victims"]] == [small.name, middle.name, large.name]
    guarding = guard("--cgroup", box, "--policy", policy)
    guarding.await_event("relieved")
    assert [job.state() for job in jobs] == ["running", "running", "stopped"]
    # Room comes by the end of another one.
    ckpt("stop", large.name)
    guarding.await_event("resumed", victim=small.name)
    await_condition(small.has_gone_on, "it to go on")
    assert guarding.end() == 0


def test_notify_signal_and_raise_do_what_they_say_and_end_the_escalation(
    ckpt: Ckpt, traces: Traces, box: Path
) -> None:
    job = MemoryJob(ckpt, traces, 40, limit="64M", pause_s=0, stays=True)
    job.go()
    job.await_size(40)
    told = traces.folder / "told"
    tell = f"env | grep ^CKPT_GUARD_ > {told}"
    at = 'at = "60%"\n'
    raising = policy_file(
        traces.folder,
        f"""{at}
        [[step]]
        do = "notify"
        command = ["/bin/sh", "-c", "{tell}"]
        [[step]]
        do = "raise"
        by = "64M"
        up-to = "96M"
        [[step]]
        do = "kill"
        """,
    )
    document = ckpt("guard", "--job", job.name, "--policy", raising, "--once")
    assert [each["step"] for each in document["events"] if each["event"] == "step"] == ["notify", "raise"]
    assert controls.limit_of(str(job.cgroup)) == 96 * MIB
    heard = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert heard["CKPT_GUARD_JOB"] == job.name
    assert heard["CKPT_GUARD_CGROUP"] == str(job.cgroup)
    assert heard["CKPT_GUARD_EVENT"] == "found"
    assert int(heard["CKPT_GUARD_USAGE_BYTES"]) > 40 * MIB
    assert heard["CKPT_GUARD_LIMIT_BYTES"] == str(64 * MIB)

    signalling = policy_file(
        traces.folder, 'at = "40%"\n[[step]]\ndo = "signal"\nsignal = "USR1"\n[[step]]\ndo = "kill"\n'
    )
    document = ckpt("guard", "--job", job.name, "--policy", signalling, "--once")
    assert [each["step"] for each in document["events"] if each["event"] == "step"] == ["signal"]
    assert job.has_gone_on()

    killing = policy_file(
        traces.folder, 'margin = "1%"\nat = "5%"\n[[step]]\ndo = "reclaim"\n[[step]]\ndo = "kill"\n'
    )
    ckpt("guard", "--job", job.name, "--policy", killing, "--once")
    assert job.state() == "exited"


def test_a_job_is_moved_to_the_host_that_the_policy_names(ckpt: Ckpt, traces: Traces, box: Path) -> None:
    if controls.is_version_2(str(box)):
        pytest.skip("a host of the lab has no memory controller of version 2")
    bed = MigrationBed(traces, ckpt)
    mount = traces.folder / "memory"
    mount.mkdir()
    for host in bed.hosts:
        host.must_run("mount", "-t", "cgroup", "-o", "memory", "none", mount)
    counter = bed.start_counter(bed.source, "--memory-max", "64M")
    policy = policy_file(
        traces.folder,
        f"""at = "3%"
        margin = "1%"
        [[step]]
        do = "migrate"
        to = {json.dumps(bed.address_of(bed.target))}
        options = {json.dumps(bed.options(bed.target))}
        [[step]]
        do = "kill"
        """,
    )
    words = ("--job", counter.job, "--policy", policy, "--once")
    ended = bed.start(bed.source, "guard", *words).wait()
    assert ended.exit_code == 0, ended
    steps = [each for each in ended.document["events"] if each["event"] == "step"]
    assert [(each["step"], each["result"]) for each in steps] == [("migrate", "done")], str(ended)[-1500:]
    counter.await_more()
    bed.assert_one_copy(counter, bed.target)


def test_what_cannot_be_guarded_is_refused_with_the_remedy(ckpt: Ckpt, traces: Traces, box: Path) -> None:
    job = MemoryJob(ckpt, traces, 1, stays=True)
    error = ckpt("guard", "--job", job.name, exit_code=62)["error"]
    assert "--memory-max" in error["hint"]
    assert ckpt("guard", "--cgroup", box, exit_code=62)["error"]["slug"] == "wrong-state"
    assert ckpt("guard", "--job", "nobody-knows-it", exit_code=63)["error"]["slug"] == "no-such-target"
    wrong = policy_file(
        traces.folder, 'at = "80%"\n[[step]]\ndo = "reclaim"\n[[step]]\ndo = "kill"\nhard = true\n'
    )
    message = ckpt("guard", "--cgroup", box, "--policy", wrong, exit_code=2)["error"]["message"]
    assert "line 6: 'hard'" in message
    small = ("--detach", "--name", ckpt.new_job_name(), "--memory-max", "1M", "--", "true")
    assert "memory limit of 1.0 MiB" in ckpt("run", *small, exit_code=2)["error"]["message"]
