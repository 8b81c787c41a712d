"""`ckpt supervise`: the supervisor of a job in the background; started by other commands, and not for people."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.output import on_one_line
from ckpt.cli.overseeing import oversee
from ckpt.cli.parameters import job_argument
from ckpt.errors import OsRefused, WrongState
from ckpt.host import supervision as kept
from ckpt.units import JobName

START_TIMEOUT_S: Final = 130.0
"""A checkpoint that a dead supervisor left under way is waited for."""

_LOG_BYTES_MAX: Final = 256 * 1024
_READY: Final = b"\n"
_PROGRAM: Final = "import sys; from ckpt.cli.main import main; sys.exit(main())"


@make_command("supervise", example="ckpt supervise web")
@job_argument
@click.option("--ready-fd", type=click.IntRange(min=3), hidden=True, help="Say here that the job is in hand.")
@click.pass_obj
def command(call: Call, /, *, name: JobName, ready_fd: int | None) -> int:  # noqa: ARG001 - the store is the job's
    """Take the checkpoints of a job that runs, as 'ckpt run --detach --every' said; ends with the job.

    It is started by other commands, and not for people. What it does is told in the file supervisor.log in the job's
    directory.
    """
    wiring.require_root("ckpt supervise")
    registry = wiring.jobs()
    with kept.lock(registry, name):
        supervision = kept.load(registry, name)
        if supervision is None:
            raise WrongState(
                subject=f"Job {name}",
                state="not supervised",
                operation="its supervisor",
                needed="to be",
                remedy="Start it by 'ckpt run --every …'.",
            )
        record = registry.load(name)
        if ready_fd is not None:
            os.write(ready_fd, _READY)
            os.close(ready_fd)
        teller = LogTeller(path=_log_of(name))
        teller.say(f"supervising {name}, process {record.root.pid}")
        return oversee(registry, record, supervision, [], teller)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTeller:
    """Tells in a file, which never gets much longer than _LOG_BYTES_MAX: what is older goes to a second one."""

    path: str

    def note(self, sentence: str) -> None:
        """What went well."""
        self.say(sentence)

    def say(self, sentence: str) -> None:
        """What the user must know."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # Nobody is helped by a job that is not supervised because a disk is full.
        with contextlib.suppress(OSError):
            if os.path.exists(self.path) and os.stat(self.path).st_size > _LOG_BYTES_MAX:
                os.replace(self.path, f"{self.path}.1")
            with open(self.path, "a", encoding="utf-8", errors="replace") as stream:
                stream.write(f"{stamp} {on_one_line(sentence)}\n")

    def warn(self, sentence: str) -> None:
        """What did not go well."""
        self.say(f"warning: {sentence}")


def start_supervisor(job: JobName) -> None:
    """Start the supervisor of a job whose supervision is written down; it has the job in hand when this returns.

    The secret of an encrypted store goes along as the present call names it. One that somebody else has started meanwhile
    is as good.

    Raises:
        OsRefused: it did not come up; with what it said.
    """
    log = _log_of(job)
    ours, theirs = os.pipe()
    with open(log, "ab") as errors:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, "supervise", job, "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs,),
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        except OSError as error:
            os.close(ours)
            raise _cannot(job, error.strerror or str(error)) from error
        finally:
            os.close(theirs)
    with open(ours, "rb", buffering=0) as channel:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        if poll.poll(START_TIMEOUT_S * 1000) and channel.read(1) == _READY:
            process.returncode = 0  # it outlives us: nobody waits for it
            return
    process.kill()
    process.wait()
    if kept.supervisor_of(wiring.jobs(), job) is not None:
        return
    raise _cannot(job, _last_line(log) or "it ended without a word")


def _environment() -> dict[str, str]:
    call = click.get_current_context().find_object(Call)
    named: dict[str, str] = {}
    if call is not None and call.key_file is not None:
        named["CKPT_KEY_FILE"] = os.path.abspath(call.key_file)
    if call is not None and call.key_command is not None:
        named["CKPT_KEY_COMMAND"] = call.key_command
    kept_ones = {name: value for name, value in os.environ.items() if not name.startswith("CKPT_KEY_")}
    paths = {
        name: os.path.abspath(os.environ[name])
        for name in ("CKPT_STATE", "CKPT_KEYS")
        if os.environ.get(name)
    }
    return {**kept_ones, **paths, **named}


def _log_of(job: JobName) -> str:
    return f"{wiring.jobs().directory(job)}/{kept.SUPERVISOR_LOG}"


def _cannot(job: JobName, reason: str) -> OsRefused:
    return OsRefused(operation="start", subject=f"the supervisor of job {job}", reason=reason)


def _last_line(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
        lines = stream.read(_LOG_BYTES_MAX * 2).strip().splitlines()
        return lines[-1] if lines else ""
    return ""
