"""What is in the way of a job's checkpoints, found out soon after its start, and not only when the first one fails.

Rule: nothing of the job is touched, frozen or stopped. A store that is missing is made, as the first checkpoint would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt.cli import wiring
from ckpt.errors import CkptError, NoSuchTarget
from ckpt.flow.check import check
from ckpt.host.criu.locate import find_criu
from ckpt.host.saved_files_found import check_paths
from ckpt.model.findings import Finding, blockers, told
from ckpt.model.supervision import Supervision
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName


def obstacles(job: JobName, supervision: Supervision) -> tuple[str, ...]:
    """Sentences: what would make a checkpoint of the job, as it is now, fail; none if nothing was found."""
    found: list[str] = []
    for look in (
        find_criu,
        lambda: wiring.open_store(supervision.store),
        lambda: check_paths(supervision.with_files, wiring.state()),
    ):
        with _noted(found):
            look()
    with _noted(found):
        found += _of_the_job(job, supervision)
    return tuple(found)


def _of_the_job(job: JobName, supervision: Supervision) -> tuple[str, ...]:
    target = TargetRef(kind=TargetKind.JOB, name=job)
    try:
        findings = check(target, supervision.options, wiring.check_ports())
    except NoSuchTarget:  # it has ended meanwhile
        return ()
    return told(blockers(findings), _sentence)


def _sentence(finding: Finding) -> str:
    named = not finding.option or finding.option in finding.remedy
    return finding.sentence if named else f"{finding.sentence} (ckpt run {finding.option})"


@contextmanager
def _noted(found: list[str]) -> Iterator[None]:
    try:
        yield
    except CkptError as error:
        found.append(f"{error.message} {error.advice}".strip())
