"""Where adapters meet ports; mypy proves here that they fit.

Rule: adapters are imported when a command needs them, so that the others stay quick.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from ckpt.cli.progress import Announce, announced
from ckpt.errors import NoSuchTarget, NotRoot, ObjectCorrupt, StoreUnusable
from ckpt.flow.dump import DumpPorts
from ckpt.flow.restore import RestorePorts
from ckpt.units import JobName

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.recovery import RecoveryAction
    from ckpt.store.store import Store

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def state() -> str:
    """The directory of the journal, the staging areas, the locks and the jobs."""
    from ckpt.host.jobs import state_directory  # noqa: PLC0415

    return state_directory()


def require_root(operation: str) -> None:
    """Refuse to begin what would fail halfway.

    Raises:
        NotRoot: this is another user.
    """
    if os.geteuid() != 0:
        raise NotRoot(operation=operation, uid=os.geteuid())


def open_store(place: str, *, create: bool = True) -> Store:
    """The store that the user named, made if it is missing and `create`.

    Raises:
        StoreUnusable: a URL of a kind that ckpt does not know, or what opening.open_local() says.
    """
    from ckpt.store.opening import open_local  # noqa: PLC0415

    return open_local(_local_path(place), create=create)


def is_there(place: str) -> bool:
    """Whether there is anything at the store's place.

    Raises:
        StoreUnusable: a URL of a kind that ckpt does not know.
    """
    path = _local_path(place)
    return (
        os.path.isdir(path) and bool(os.listdir(path)) if os.access(path, os.R_OK) else os.path.exists(path)
    )


def dump_ports(place: str, announce: Announce) -> DumpPorts:
    """Everything that a dump needs; the phases are announced as they begin.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.dumper import CriuDumper  # noqa: PLC0415
    from ckpt.host.inspection import HostInspector  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415

    registry = jobs()
    criu = find_criu()
    return DumpPorts(
        clock=HostClock(),
        operations=JournaledOperations(state()),
        targets=HostTargets(state(), registry.cgroup_of),
        inspector=announced(
            HostInspector(state()),
            {
                "survey": "looking at the processes",
                "confirm": "dumping",
                "describe": "describing the workload",
                "inodes": "reading the files",
            },
            announce,
        ),
        dumper=announced(
            CriuDumper(criu, state()),
            {"start": "starting CRIU", "image_files": "storing the images"},
            announce,
        ),
        store=open_store(place),
        jobs=registry,
    )


def restore_ports(place: str, announce: Announce) -> RestorePorts:
    """Everything that a restore needs; the phases are announced as they begin.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.inspection import HostInspector  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.restorer import CriuRestorer  # noqa: PLC0415

    return RestorePorts(
        clock=HostClock(),
        operations=JournaledOperations(state()),
        inspector=announced(HostInspector(state()), {"differences": "comparing the files"}, announce),
        restorer=announced(CriuRestorer(find_criu(), jobs()), {"session": "restoring"}, announce),
        store=announced(
            open_store(place), {"load": "opening the checkpoint", "fetch": "reading the images"}, announce
        ),
    )


def jobs() -> JobRegistry:
    """The jobs of this host."""
    from ckpt.host.jobs import JobRegistry  # noqa: PLC0415

    return JobRegistry(state())


def start_job(
    name: JobName, argv: tuple[str, ...], *, log: str, apart: bool
) -> tuple[JobRegistry, JobRecord]:
    """Start the command as a job, with this process's directory, environment and umask."""
    from ckpt.host import starting  # noqa: PLC0415

    registry = jobs()
    umask = os.umask(0o022)
    os.umask(umask)
    command = starting.Command(
        name=name,
        argv=argv,
        cwd=os.getcwd(),
        environment=dict(os.environ),
        umask=umask,
        log=log,
        apart=apart,
    )
    return registry, starting.start(registry, command)


def stop_job(name: JobName, grace_s: float) -> bool:
    """End the job, unless another ckpt is at it; gives whether it ended by itself.

    Raises:
        NoSuchTarget, WrongState: there is no such job, or it does not run.
        Locked: it is being dumped.
    """
    from ckpt.host import starting  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415
    from ckpt.model.target import TargetRef  # noqa: PLC0415
    from ckpt.model.workload import TargetKind  # noqa: PLC0415

    registry = jobs()
    if not registry.look(name).is_alive:
        return starting.stop(registry, name, grace_s)
    targets = HostTargets(state(), registry.cgroup_of)
    with targets.lock(targets.resolve(TargetRef(kind=TargetKind.JOB, name=name))):
        return starting.stop(registry, name, grace_s)


def tidy_job(name: JobName) -> None:
    """Remove the cgroups of a job that has ended; nothing if it runs, perhaps again, or is gone."""
    from ckpt.host.starting import remove_cgroups  # noqa: PLC0415

    with contextlib.suppress(NoSuchTarget, ObjectCorrupt):
        view = jobs().look(name)
        if not view.is_alive:
            remove_cgroups(view.record)


def runs(name: JobName) -> bool:
    """Whether there is a job of this name that runs; one whose record cannot be read does not."""
    with contextlib.suppress(NoSuchTarget, ObjectCorrupt):
        return jobs().look(name).is_alive
    return False


def recover() -> tuple[RecoveryAction, ...]:
    """Undo what controllers left that died; gives what was done, and what could not be."""
    from ckpt.host.recovery import recover_all  # noqa: PLC0415

    return recover_all(state())


def _local_path(place: str) -> str:
    url = _URL.fullmatch(place)
    if url is None:
        return place
    if url[1].lower() == "file" and url[2].startswith("/"):
        return url[2]
    raise StoreUnusable(
        place=place,
        reason=f"ckpt knows no stores of the kind {url[1]}://",
        remedy="Name a directory: --store /path, or file:///path.",
    )
