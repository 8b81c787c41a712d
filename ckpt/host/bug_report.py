"""A bug report: what somebody needs who shall find out from afar why ckpt failed here, in one archive.

Rules: it says itself what is in it and what was left out. Environments and command lines are in it only if the user
asks for them; passphrases, keys and what is in memory or files never. Every part is bounded. Nothing that is there is
overwritten, and a report that could not be finished does not remain.
Source: the archive is a POSIX tar, compressed with gzip.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Final

from ckpt import VERSION
from ckpt.errors import CkptError, OsRefused, WrongState
from ckpt.host import journal, report_facts
from ckpt.host.jobs import JobRegistry, JobView
from ckpt.host.kept_log import LOGS_KEPT, kept_logs
from ckpt.host.masking import Masking, environment_of
from ckpt.host.report_facts import as_json, bounded

NEVER: Final = (
    "memory, images and the contents of files",
    "this host's signing key, keys and passphrases of stores, and what is named as a password, token or key",
    "what jobs wrote to their standard output and error",
)
SECRETS: Final = (
    "command lines of jobs",
    "environments of jobs",
    "words of both, wherever they stand in logs and journal",
)

_JOBS_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of the report, and in a few words what it is."""

    name: str
    what: str
    content: bytes


def json_part(name: str, what: str, document: Any) -> Part:
    """A part that is one JSON document."""
    return Part(name=name, what=what, content=as_json(document).encode())


def write_report(path: str, state: str, more: tuple[Part, ...], *, with_secrets: bool) -> tuple[Part, ...]:
    """Write the report to the new file `path`, readable for this user alone; gives what is in it.

    Args:
        path: Where it goes.
        state: The state directory.
        more: What others know: the findings of doctor, the store.
        with_secrets: Whether command lines and environments of jobs are in it.

    Raises:
        WrongState: there is a file.
        OsRefused: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise WrongState(
            subject=path,
            state="there already",
            operation="a report",
            needed="not to be",
            remedy="Name another file, or remove that one.",
        ) from None
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with os.fdopen(fd, "wb") as file:
            jobs = JobRegistry(state).list()[:_JOBS_MAX]
            parts = (*more, *_facts(jobs, with_secrets=with_secrets))
            parts += tuple(_texts(state, _masking(jobs, with_secrets=with_secrets)))
            parts = (_manifest(parts, with_secrets=with_secrets), *parts)
            _pack(file, parts)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise _refused(path, error) from error
        raise
    return parts


def _refused(path: str, error: OSError) -> OsRefused:
    return OsRefused(operation="write", subject=path, reason=error.strerror or str(error))


def _pack(file: BinaryIO, parts: tuple[Part, ...]) -> None:
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for part in parts:
            member = tarfile.TarInfo(f"ckpt-report/{part.name}")
            member.size = len(part.content)
            member.mtime = int(time.time())
            member.mode = 0o600
            archive.addfile(member, io.BytesIO(part.content))


def _manifest(parts: tuple[Part, ...], *, with_secrets: bool) -> Part:
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lines = [f"Report of ckpt {VERSION}, made {made}.", "", "What is in it:"]
    lines += [f"  {part.name:<28} {len(part.content):>9} bytes  {part.what}" for part in parts]
    lines += ["", "What is not in it:", *(f"  {what}" for what in NEVER)]
    if not with_secrets:
        lines += [f"  {what} (--with-secrets adds them)" for what in SECRETS]
    lines += ["", "Look through it before you give it to others."]
    content = "\n".join(lines).encode() + b"\n"
    return Part(name="MANIFEST.txt", what="this list", content=content)


def _facts(jobs: tuple[JobView, ...], *, with_secrets: bool) -> Iterator[Part]:
    """What is put together here, so that it is known what is in it."""
    facts: tuple[tuple[str, str, Callable[[], str]], ...] = (
        ("versions.json", "versions of kernel, CRIU, ckpt, distribution", report_facts.versions),
        ("criu-check.txt", "what 'criu check --all' says", report_facts.criu_check),
        ("kernel-config.txt", "lines of the kernel's configuration", report_facts.kernel_config),
        ("mountinfo.txt", "the mounts that this process sees", partial(bounded, "/proc/self/mountinfo")),
        ("cgroups.txt", "cgroup file systems, this process's cgroups", report_facts.cgroup_layout),
        ("settings.txt", "variables that ckpt reads, its limits", report_facts.settings),
        ("jobs.json", "the jobs", partial(report_facts.job_list, jobs, with_secrets=with_secrets)),
    )
    for name, what, read in facts:
        yield Part(name=name, what=what, content=_text(read, Masking()))


def _texts(state: str, masking: Masking) -> Iterator[Part]:
    """What others wrote, with words masked."""
    for number, directory in enumerate(report_facts.journal_entries(state)):
        yield Part(
            name=f"journal/{number}.json",
            what="an operation under way, or left by a crash",
            content=_text(partial(bounded, f"{directory}/{journal.ENTRY_NAME}"), masking),
        )
    for path in kept_logs(state)[:LOGS_KEPT]:
        yield Part(
            name=f"logs/{os.path.basename(path)}",
            what="CRIU's log of a failure",
            content=_text(partial(bounded, path), masking),
        )


def _text(read: Callable[[], str], masking: Masking) -> bytes:
    """A text; one that cannot be had says why."""
    try:
        text = read()
    except (OSError, CkptError, subprocess.SubprocessError, ValueError) as error:
        text = f"could not be read: {error}\n"
    return masking.masked(text).encode("utf-8", "surrogateescape")


def _masking(jobs: tuple[JobView, ...], *, with_secrets: bool) -> Masking:
    masking = Masking()
    for job in jobs:
        variables = [variable for pid in job.pids for variable in environment_of(pid)]
        if with_secrets:
            masking.add_passphrases((*job.record.argv, *variables))
        else:
            masking.add_command_line(job.record.argv)
            masking.add_environment(variables)
    return masking
