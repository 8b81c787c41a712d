"""Rules over needs: pids, the job's name, descriptors.

Source: criu/servicefd.c (choose_service_fd_base); criu/cr-restore.c (fork_with_pid).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ckpt.errors import CkptError
from ckpt.host.jobs import JobRegistry
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.host.restorer import taken_pids
from ckpt.model.findings import Severity
from ckpt.model.needs import Needs

_SERVICE_FDS: Final = 40
"""What CRIU's own descriptors need above the task's: SERVICE_FD_MAX and a safety pad of 16."""

_TABLE_STEP: Final = 128
"""The kernel's descriptor tables, and so CRIU's choice, are multiples of this (1024 bytes of pointers)."""


def _pids(needs: Needs, _here: Here) -> Iterator[Found]:
    wanted = {needed.pid: needed.name for needed in needs.pids if needed.pid > 0}
    for pid, sentence in taken_pids(wanted):
        yield Found(
            pid=pid, subject=f"pid {pid}", message=f"{sentence}, and {wanted[pid] or 'the workload'} needs it"
        )


def _job(needs: Needs, here: Here) -> Iterator[Found]:
    if needs.job is None:
        return
    # One whose record cannot be read is no job that runs; 'ckpt ps' tells of it.
    with suppress(CkptError):
        view = JobRegistry(here.state).look(needs.job)
        if view.is_alive:
            yield Found(
                pid=view.record.root.pid,
                subject=f"job {needs.job}",
                message=f"job {needs.job} is {view.state} here (process {view.record.root.pid})",
            )


def _descriptors(needs: Needs, _here: Here) -> Iterator[Found]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return
    wanted = needs.descriptor_max + _SERVICE_FDS
    if wanted > hard - hard % _TABLE_STEP:
        yield Found(
            pid=None,
            subject="RLIMIT_NOFILE",
            message=f"the workload has a descriptor {needs.descriptor_max}, and this process may open {hard}",
        )


RULES: Final = (
    NeedRule(
        name="pid-taken",
        severity=Severity.BLOCKER,
        title="Pids and thread ids that are in use",
        effect="CRIU cannot give the task its pid.",
        remedy="End the process that has the pid, or restore with --pids new.",
        find=_pids,
    ),
    NeedRule(
        name="job-runs",
        severity=Severity.BLOCKER,
        title="The job runs already",
        effect="The restore is refused: there would be two of it.",
        remedy="Stop it with 'ckpt stop', or restore under another name with --name.",
        find=_job,
    ),
    NeedRule(
        name="descriptor-limit",
        severity=Severity.BLOCKER,
        title="More descriptors than this host allows a process",
        effect="CRIU finds no room for its own descriptors.",
        remedy="Raise the hard limit before the restore: ulimit -Hn 1048576.",
        find=_descriptors,
    ),
)
