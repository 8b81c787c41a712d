"""What is tried in the virtual machine of guard_v2_vm.py: pressure and answers to it on cgroup version 2.

Rules: a scenario ends by an assertion or not at all; it says what it has seen. Conditions are awaited, never slept for.
Source: Documentation/admin-guide/cgroup-v2.rst; systemd, src/oom/ (io.systemd.ManagedOOM); nohang, nohang.conf.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
CKPT = str(CHECKOUT / ".venv/bin/ckpt")
CGROUPS = Path("/sys/fs/cgroup/ckpt")
MIB = 1 << 20
PATIENCE_S = 90.0

OOMD = Path("/opt/newer/usr/lib/systemd/systemd-oomd")
OOMD_LIBRARIES = "/opt/newer/usr/lib/x86_64-linux-gnu:/opt/newer/usr/lib/x86_64-linux-gnu/systemd:/opt/newer/usr/lib/systemd"
MANAGED_OOM = "/run/systemd/io.systemd.ManagedOOM"
HOOK = "/run/systemd/oomd.prekill.hook/ckpt"
NOHANG = Path("/usr/sbin/nohang")

# Allocates MiB after MiB, each with content of its own; writes down the digest of all in RESULT. Before, and before it
# writes, it waits until RESULT.go and RESULT.end are there.
GROW = """
import hashlib, os, sys, time
while not os.path.exists(sys.argv[2] + ".go"):
    time.sleep(0.05)
kept = []
for number in range(int(sys.argv[1])):
    kept.append(bytearray(hashlib.sha256(str(number).encode()).digest() * 32768))
    time.sleep(float(sys.argv[3]))
while not os.path.exists(sys.argv[2] + ".end"):
    time.sleep(0.05)
whole = hashlib.sha256()
for block in kept:
    whole.update(block)
open(sys.argv[2], "w").write(whole.hexdigest())
"""


def main() -> int:
    wanted = sys.argv[1:] or list(SCENARIOS)
    failed = []
    for name in wanted:
        began = time.monotonic()
        print(f"guest: {name} begins", flush=True)
        try:
            said = SCENARIOS[name]()
        except Exception:  # noqa: BLE001 - the next one is tried in any case
            traceback.print_exc()
            failed.append(name)
            said = "FAILED"
        print(f"guest: {name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"guest: {'failed: ' + ' '.join(failed) if failed else 'passed'}", flush=True)
    return 1 if failed else 0


# ── Scenarios ─────────────────────────────────────────────────────────────────────────────────────────────


def guarded() -> str:
    """A job grows to its limit: it is checkpointed instead of killed, and comes back when the limit is raised."""
    result = Path("/tmp/guarded")
    ckpt("run", "--detach", "--name", "guarded", "--memory-max", "40M", "--", *grow(56, result))
    with running(CKPT, "-v", "guard", "--job", "guarded") as guard:
        await_true("the guard watches", lambda: "watching" in said_by(guard), guard)
        go(result)
        await_true("the guard stops the job", lambda: state("guarded") == "stopped", guard)
        assert kills("guarded") == 0, "the OOM killer was quicker"
        assert not result.exists()
        go(result, ".end")
        raise_limit("guarded", 128 * MIB)
        await_true("the job has its result", result.exists, guard)
    assert result.read_text() == digest(56), "another result than of an undisturbed run"
    return "checkpointed at its limit, resumed when it was raised, right result"


def at_oom() -> str:
    """The same with a guard that is told to wait until the limit is reached."""
    result = Path("/tmp/at_oom")
    ckpt("run", "--detach", "--name", "at_oom", "--memory-max", "40M", "--", *grow(56, result))
    with running(CKPT, "-v", "guard", "--job", "at_oom", "--at", "oom") as guard:
        await_true("the guard watches", lambda: "watching" in said_by(guard), guard)
        go(result)
        await_true("the guard stops the job", lambda: state("at_oom") == "stopped", guard)
        assert kills("at_oom") == 0, "the OOM killer was quicker"
        go(result, ".end")
        raise_limit("at_oom", 128 * MIB)
        await_true("the job has its result", result.exists, guard)
    assert result.read_text() == digest(56), "another result than of an undisturbed run"
    return "checkpointed at its limit, resumed when it was raised, right result"


def dies() -> str:
    """A guard that is killed leaves the cgroup as it was: what it had set to be told of pressure is set back."""
    result = Path("/tmp/dies")
    ckpt("run", "--detach", "--name", "dies", "--memory-max", "40M", "--", *grow(8, result))
    high = CGROUPS / "dies/memory.high"
    before = high.read_text()
    with running(CKPT, "guard", "--job", "dies", "--at", "50%") as guard:
        await_true("the guard watches", lambda: "watching" in said_by(guard), guard)
        assert high.read_text() != before
        guard.kill()
        guard.wait()
        await_true("memory.high is back", lambda: high.read_text() == before, None)
    ckpt("stop", "dies")
    return "memory.high is set back when the guard is killed"


def prekill() -> str:
    """systemd-oomd tells the hook before it kills: the job is checkpointed, and comes back."""
    if not OOMD.exists():
        return "skipped: there is no systemd-oomd"
    result = Path("/tmp/prekill")
    ckpt("run", "--detach", "--name", "prekill", "--memory-max", "256M", "--", *grow(48, result, pause_s=0.2))
    # Above this it is slowed down by reclaiming, and that is the pressure which systemd-oomd acts on.
    (CGROUPS / "prekill/memory.high").write_text(str(32 * MIB))
    for directory in ("/etc/systemd", "/run/systemd/oom"):
        Path(directory).mkdir(parents=True, exist_ok=True)
    Path("/etc/systemd/oomd.conf").write_text("[OOM]\nPrekillHookTimeoutSec=60s\n")
    with (
        managed_oom(("/ckpt",)),
        running(CKPT, "-v", "guard-hook", "--prekill") as hook,
    ):
        await_true("the hook listens", lambda: os.path.exists(HOOK), hook)
        libraries = ("--library-path", OOMD_LIBRARIES)
        with running(
            "/opt/newer/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", *libraries, str(OOMD)
        ) as oomd:
            go(result)
            await_true("the job is stopped", lambda: state("prekill") == "stopped", oomd)
            await_true("systemd-oomd has gone on", lambda: "prekill hook finished" in said_by(oomd), oomd)
    assert not result.exists()
    go(result, ".end")
    ckpt("restore", "prekill")
    # The restore has brought the limit back as it was: there would be no end of being slowed down.
    (CGROUPS / "prekill/memory.high").write_text("max")
    await_true("the job has its result", result.exists, None)
    assert result.read_text() == digest(48), "another result than of an undisturbed run"
    return "checkpointed before systemd-oomd's kill, right result after a restore"


def nohang() -> str:
    """nohang runs our command instead of a signal."""
    if not NOHANG.exists():
        return "skipped: there is no nohang"
    result = Path("/tmp/nohang")
    ckpt("run", "--detach", "--name", "nohang", "--", *grow(96, result, pause_s=0.1))
    # The highest threshold that it takes is half of the memory; so that the job passes it, the rest is taken here.
    total, available = memory()
    ballast = Path("/tmp/ballast")
    ballast.write_bytes(b"\1" * (available - total // 2 - 32 * MIB))
    template = Path("/etc/nohang/nohang.conf").read_text()
    # Without the last two it kills our command, and the job, before a checkpoint is done on so slow a machine.
    settings = {
        "soft_threshold_min_mem": "50 %",
        "hard_threshold_min_mem": "1 %",
        "exe_timeout": "120",
        "max_soft_exit_time": "120",
    }
    lines = [line for line in template.splitlines() if line.partition("=")[0].strip() not in settings]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    lines += [
        f"@SOFT_ACTION_RE_CGROUP_V2 ^/ckpt/ /// {CKPT} guard-hook --pid $PID",
        "@BADNESS_ADJ_RE_NAME -900 /// ^(ckpt|criu)",
        f"@BADNESS_ADJ_RE_CMDLINE -900 /// {os.path.basename(__file__)}",
    ]
    config = Path("/tmp/nohang.conf")
    config.write_text("\n".join(lines) + "\n")
    with running(sys.executable, str(NOHANG), "--monitor", "--config", str(config), shown=False) as daemon:
        go(result)
        await_true("the job is stopped", lambda: state("nohang") == "stopped", daemon)
    ballast.unlink()
    go(result, ".end")
    ckpt("restore", "nohang")
    await_true("the job has its result", result.exists, None)
    assert result.read_text() == digest(96), "another result than of an undisturbed run"
    return "checkpointed by nohang's command, right result after a restore"


SCENARIOS: dict[str, Callable[[], str]] = {
    "guarded": guarded,
    "at_oom": at_oom,
    "dies": dies,
    "prekill": prekill,
    "nohang": nohang,
}


# ── What they are made of ─────────────────────────────────────────────────────────────────────────────────


def ckpt(*words: str) -> dict[str, Any]:
    """Run ckpt and return its JSON document; it must succeed."""
    done = subprocess.run(
        [CKPT, *words[:1], "--json", *words[1:]], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"ckpt {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def memory() -> tuple[int, int]:
    """This machine's memory, and what is available of it."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemTotal"].split()[0]) * 1024, int(lines["MemAvailable"].split()[0]) * 1024


def state(job: str) -> str:
    """What `ckpt ps` says of the job."""
    return next((each["state"] for each in ckpt("ps")["jobs"] if each["name"] == job), "")


def grow(mebibytes: int, result: Path, pause_s: float = 0.02) -> tuple[str, ...]:
    """The command line of a job that takes so much memory."""
    return (sys.executable, "-I", "-S", "-c", GROW, str(mebibytes), str(result), str(pause_s))


def go(result: Path, to: str = ".go") -> None:
    """Let the job begin to grow, or with ".end" come to its end."""
    result.with_suffix(to).touch()


def digest(mebibytes: int) -> str:
    """What the job must write down."""
    whole = hashlib.sha256()
    for number in range(mebibytes):
        whole.update(hashlib.sha256(str(number).encode()).digest() * 32768)
    return whole.hexdigest()


def kills(job: str) -> int:
    """How often the OOM killer came for the job."""
    events = dict(line.split() for line in (CGROUPS / job / "memory.events").read_text().splitlines())
    return int(events["oom_kill"])


def raise_limit(job: str, limit: int) -> None:
    """Do what an operator does."""
    (CGROUPS / job / "memory.high").write_text("max")
    (CGROUPS / job / "memory.max").write_text(str(limit))


_SAID: dict[int, list[str]] = {}


@contextlib.contextmanager
def running(*words: str, shown: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A program that runs beside; what it says is kept, and printed where it is to be shown."""
    environ = {
        **os.environ,
        "SYSTEMD_LOG_LEVEL": "info",
        "SYSTEMD_LOG_TARGET": "console",
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
    ) as process:
        kept = _SAID.setdefault(process.pid, [])
        reading = threading.Thread(target=_keep, args=(process, kept, shown), daemon=True)
        reading.start()
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            reading.join(5)


def _keep(process: subprocess.Popen[str], kept: list[str], shown: bool) -> None:  # noqa: FBT001 - Thread's
    assert process.stdout is not None
    for line in process.stdout:
        kept.append(line)
        if shown:
            print(f"  {os.path.basename(process.args[0])}: {line}", end="", flush=True)  # type: ignore[index]


def said_by(process: subprocess.Popen[str]) -> str:
    """All that it has said."""
    return "".join(_SAID[process.pid])


def await_true(what: str, holds: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
    """Wait until it holds; fail when it does not in time, or the process has ended."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, f"never came: {what}"
        assert process is None or process.poll() is None, f"it ended ({process.returncode}) before: {what}"
        time.sleep(0.2)


@contextlib.contextmanager
def managed_oom(paths: tuple[str, ...]) -> Iterator[None]:
    """What systemd's PID 1 is to systemd-oomd: it names the cgroups whose memory pressure is to be watched."""
    Path(MANAGED_OOM).parent.mkdir(parents=True, exist_ok=True)
    said = {
        "mode": "kill",
        "property": "ManagedOOMMemoryPressure",
        "limit": (1 << 32) // 100,
        "duration": MIB,
    }
    answer = {"parameters": {"cgroups": [{**said, "path": path} for path in paths]}, "continues": True}

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(4096)
            connection.sendall(json.dumps(answer).encode() + b"\0")
            kept.append(connection)

    kept: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(MANAGED_OOM)
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield
    for connection in kept:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
