"""Where adapters meet ports; mypy proves here that they fit.

Rule: adapters are imported when a command needs them, so that the others stay quick.
"""

from __future__ import annotations

import contextlib
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

import click

from ckpt.cli.call import Call
from ckpt.cli.expecting import expecting_dump, expecting_restore
from ckpt.cli.progress import Teller, announced
from ckpt.errors import (
    CkptError,
    NoSuchTarget,
    NotRoot,
    ObjectCorrupt,
    OsRefused,
    StoreUnusable,
    WrongState,
)
from ckpt.flow.check import CheckPorts
from ckpt.flow.dump import DumpPorts
from ckpt.flow.restore import RestorePorts
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds, Pid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ckpt.cli.output import Output
    from ckpt.flow.ports import ContentsReader, LateMemory
    from ckpt.host.jobs import JobRecord, JobRegistry
    from ckpt.host.launch import Stdio
    from ckpt.host.outside import JobTerminal, Joined
    from ckpt.host.preflight.needs_host import CriuImageNeeds, HostJudge, HostTargetNeeds
    from ckpt.host.process_table import ProcessRef
    from ckpt.host.recovery import RecoveryAction
    from ckpt.model.findings import Finding
    from ckpt.model.network import Network
    from ckpt.model.reports import Problem, TransferReport
    from ckpt.store.keyring import KeyRing
    from ckpt.store.store import Store

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


_CHECKPOINT_PATIENCE_S: Final = 60.0
_END_PATIENCE_S: Final = 10.0
_T = TypeVar("_T")

_DUMP_MODULES: Final = (
    "ckpt.cli.keeping",
    "ckpt.flow.dump",
    "ckpt.host.criu.locate",
    "ckpt.host.dumper",
    "ckpt.host.inodes.ladder",
    "ckpt.host.inodes.pinbook",
    "ckpt.host.inspection.inspector",
    "ckpt.host.operations",
    "ckpt.host.saved_files",
    "ckpt.host.targets",
    "ckpt.host.volumes.adapter",
    "ckpt.store.opening",
)


def state() -> str:
    """The directory of the journal, the staging areas, the locks and the jobs."""
    from ckpt.host.jobs import state_directory  # noqa: PLC0415

    return state_directory()


def stopwatch() -> Nanoseconds:
    """A clock that only ever goes forward, for durations."""
    from ckpt.host.clock import HostClock  # noqa: PLC0415

    return HostClock().stopwatch()


def require_root(operation: str) -> None:
    """Refuse to begin what would fail halfway.

    Raises:
        NotRoot: this is another user.
    """
    if os.geteuid() != 0:
        raise NotRoot(operation=operation, uid=os.geteuid())


def open_store(place: str, *, create: bool = True, either: bool = False) -> Store:
    """The store that the user named, made if it is missing and `create`.

    The secret of an encrypted one is what the options of the present call name; a store that is not encrypted
    is refused then, unless the secret may be that of `either` of two stores.

    Raises:
        StoreUnusable: a URL of a kind that ckpt does not know, or what opening.open_local() says.
        WrongKey: it is encrypted, and the secret does not open it.
    """
    from ckpt.store.opening import Keys, open_local  # noqa: PLC0415

    return open_local(
        local_path(place),
        create=create,
        keys=Keys(secret=_secret, is_named=_names_a_secret() and not either, trust=key_ring()),
    )


def init_store(place: str, *, secret: bytes | None, signatures_required: bool) -> Store:
    """Make a store, encrypted if there is a secret.

    Raises:
        WrongState: there is one.
        StoreUnusable: a URL of a kind that ckpt does not know, or what opening.init_local() says.
    """
    from ckpt.store.opening import init_local  # noqa: PLC0415

    return init_local(
        local_path(place), secret=secret, signatures_required=signatures_required, trust=key_ring()
    )


def transfer(source: Store, target: Store, checkpoint: CheckpointId, announce: Teller) -> TransferReport:
    """Copy a checkpoint from one store into another; raises what transferring.transfer() does."""
    from ckpt.store.transferring import transfer as copy  # noqa: PLC0415

    if _names_a_secret() and not (source.is_encrypted or target.is_encrypted):
        raise WrongState(
            subject=f"Neither {source.place} nor {target.place}",
            state="encrypted",
            operation="a call with a key",
            needed="to be",
            remedy="Leave out --key-file and --key-command, and CKPT_KEY_FILE and CKPT_KEY_COMMAND.",
        )
    announce("copying what is missing there")
    target.progress = announce
    return copy(source, target, checkpoint)


def _names_a_secret() -> bool:
    """Whether the present call names a secret, and so expects an encrypted store."""
    context = click.get_current_context(silent=True)
    call = context.find_object(Call) if context else None
    return call is not None and (call.key_file is not None or call.key_command is not None)


def _secret() -> bytes | None:
    """The secret that the present call names for encrypted stores; None if it names none."""
    from ckpt.store import passkey  # noqa: PLC0415

    context = click.get_current_context(silent=True)
    call = context.find_object(Call) if context else None
    if call is None:
        return None
    if call.key_file is not None:
        return passkey.read_key_file(call.key_file)
    return None if call.key_command is None else passkey.run_key_command(call.key_command)


def key_ring() -> KeyRing:
    """This host's signing key, and the keys that it trusts: in $CKPT_KEYS, or `keys` of the state directory."""
    from ckpt.store.keyring import KeyRing  # noqa: PLC0415

    directory = os.path.abspath(os.environ.get("CKPT_KEYS") or f"{state()}/keys")
    return KeyRing(directory, own_comment=os.uname().nodename)


def is_there(place: str) -> bool:
    """Whether there is anything at the store's place.

    Raises:
        StoreUnusable: a URL of a kind that ckpt does not know.
    """
    path = local_path(place)
    return (
        os.path.isdir(path) and bool(os.listdir(path)) if os.access(path, os.R_OK) else os.path.exists(path)
    )


def dump_ports(place: str, announce: Teller) -> DumpPorts:
    """Everything that a dump needs; the phases are announced as they begin.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.dumper import CriuDumper  # noqa: PLC0415
    from ckpt.host.inodes.ladder import HostInodes  # noqa: PLC0415
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415
    from ckpt.host.network.adapter import HostNetworks  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.saved_files import HostFileSaver  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415
    from ckpt.host.volumes.adapter import HostVolumes  # noqa: PLC0415

    registry = jobs()
    criu = find_criu()
    opened = open_store(place)
    opened.progress = announce
    dumper, store = expecting_dump(CriuDumper(criu, state()), opened, announce)
    return DumpPorts(
        clock=HostClock(),
        operations=JournaledOperations(state()),
        targets=HostTargets(state(), registry.cgroup_of),
        inspector=announced(
            HostInspector(state(), progress=announce),
            {
                "survey": "looking at the processes",
                "confirm": "dumping",
                "describe": "describing the workload",
                "inodes": "reading the files",
            },
            announce,
        ),
        inodes=HostInodes(state(), os.path.abspath(local_path(place))),
        dumper=announced(dumper, {"start": "starting CRIU"}, announce),
        saver=announced(HostFileSaver(), {"select": "looking at the files to save"}, announce),
        store=store,
        jobs=registry,
        volumes=announced(HostVolumes(state(), registry), {"write_out": "writing out the volumes"}, announce),
        networks=HostNetworks(state()),
    )


def load_dump_modules() -> None:
    """Import what dump_ports() does, and the flow itself, so that a child that is forked finds it loaded."""
    for name in _DUMP_MODULES:
        import_module(name)


def check_ports() -> CheckPorts:
    """What a check of something that runs needs: no store, and no CRIU."""
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415
    from ckpt.host.targets import HostTargets  # noqa: PLC0415

    return CheckPorts(targets=HostTargets(state(), jobs().cgroup_of), inspector=HostInspector(state()))


def judge(place: str) -> HostJudge:
    """This host, as far as it can say what a restore would lack; `place` is where its store is."""
    from ckpt.host.preflight.needs_host import HostJudge  # noqa: PLC0415

    return HostJudge(state=state(), store=local_path(place))


def signers_of(store: Store, checkpoint: CheckpointId) -> tuple[str, ...] | None:
    """The public keys that have signed a checkpoint; None where its store asks for none."""
    from ckpt.store.vouching import signers_of as signers  # noqa: PLC0415

    return signers(store, checkpoint)


def judge_signers(signers: tuple[str, ...] | None) -> tuple[Finding, ...]:
    """A finding if this host trusts none of these keys."""
    from ckpt.store.vouching import judge_signers as judge_them  # noqa: PLC0415

    return judge_them(signers, key_ring())


def image_needs() -> CriuImageNeeds:
    """Who reads out of images what they need of a host."""
    from ckpt.host.preflight.needs_host import CriuImageNeeds  # noqa: PLC0415

    return CriuImageNeeds()


def target_needs() -> HostTargetNeeds:
    """Who reads what a workload that runs needs of a host."""
    from ckpt.host.preflight.needs_host import HostTargetNeeds  # noqa: PLC0415

    return HostTargetNeeds(state())


def restore_ports(
    place: str, announce: Teller, *, lazy: bool = False, joined: Joined | None = None
) -> RestorePorts:
    """Everything that a restore needs; the phases are announced as they begin.

    Args:
        place: Where the store is.
        announce: Told of the phases.
        lazy: Let private memory come when the workload runs already.
        joined: What takes the place of what the workload had from outside.

    Raises:
        CriuMissing: there is no CRIU.
        StoreError: the store cannot be opened.
    """
    from ckpt.host.clock import HostClock  # noqa: PLC0415
    from ckpt.host.criu.locate import find_criu  # noqa: PLC0415
    from ckpt.host.inodes.ladder import HostInodes  # noqa: PLC0415
    from ckpt.host.inspection.inspector import HostInspector  # noqa: PLC0415
    from ckpt.host.operations import JournaledOperations  # noqa: PLC0415
    from ckpt.host.outside import NOTHING_JOINED  # noqa: PLC0415
    from ckpt.host.restorer import CriuRestorer  # noqa: PLC0415
    from ckpt.host.saved_files_back import HostFileWriter  # noqa: PLC0415
    from ckpt.host.volumes.adapter import HostVolumes  # noqa: PLC0415

    opened = open_store(place)
    opened.progress = announce
    criu = find_criu()
    return RestorePorts(
        clock=HostClock(),
        operations=JournaledOperations(state()),
        inspector=announced(
            HostInspector(state(), progress=announce), {"differences": "comparing the files"}, announce
        ),
        inodes=HostInodes(state(), os.path.abspath(local_path(place))),
        restorer=announced(
            CriuRestorer(criu, jobs(), joined or NOTHING_JOINED), {"session": "restoring"}, announce
        ),
        writer=announced(HostFileWriter(), {"begin": "writing files back"}, announce),
        store=expecting_restore(opened, announce),
        volumes=announced(HostVolumes(state(), jobs()), {"bring": "mounting the volumes"}, announce),
        late=_late_memory(opened, criu, announce) if lazy else None,
    )


def _late_memory(store: Store, criu: Path, announce: Teller) -> LateMemory:
    from ckpt.host.lazy.late_memory import StoredMemory  # noqa: PLC0415

    return StoredMemory(criu, store.read_range, announce)


def contents_reader() -> ContentsReader:
    """What reads image sets for `ckpt show`, `diff` and `report`."""
    from ckpt.host.image_contents import ImageContents  # noqa: PLC0415

    return ImageContents()


def jobs() -> JobRegistry:
    """The jobs of this host."""
    from ckpt.host.jobs import JobRegistry  # noqa: PLC0415

    return JobRegistry(state())


def start_job(
    name: JobName,
    argv: tuple[str, ...],
    *,
    log: str,
    apart: bool,
    volumes: tuple[tuple[str, ByteCount | None], ...] = (),
    network: Network | None = None,
    group: str = "",
    stdin: Stdio | None = None,
    terminal: JobTerminal | None = None,
    memory_max: ByteCount | None = None,
    feeder: ProcessRef | None = None,
) -> tuple[JobRegistry, JobRecord]:
    """Start the command as a job, with this process's directory, environment and umask."""
    from ckpt.host import starting  # noqa: PLC0415
    from ckpt.host.launch import Stdio  # noqa: PLC0415
    from ckpt.host.volumes.owning import WantedVolume  # noqa: PLC0415

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
        volumes=tuple(WantedVolume(mountpoint=place, size=size) for place, size in volumes),
        network=network,
        group=group,
        stdin=stdin or Stdio(path=os.devnull),
        terminal=terminal,
        memory_max=memory_max,
        feeder=feeder,
    )
    return registry, starting.start(registry, command)


def limit_memory(name: JobName, size: ByteCount) -> None:
    """Let this be the memory limit of a job that does not run, when it is restored; it had one before."""
    from ckpt.host.guard.memory import make_memory_cgroup  # noqa: PLC0415
    from ckpt.host.jobs import cgroup_name  # noqa: PLC0415

    make_memory_cgroup(cgroup_name(name), size)


def stop_job(name: JobName, grace_s: float) -> bool:
    """End the job, unless another ckpt is at it; gives whether it ended by itself.

    A checkpoint that the job's supervisor has under way is waited for.

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

    def stop() -> bool:
        with targets.lock(targets.resolve(TargetRef(kind=TargetKind.JOB, name=name))):
            return starting.stop(registry, name, grace_s)

    return beside_supervisor(name, stop)


def beside_supervisor(name: JobName | None, act: Callable[[], _T]) -> _T:
    """What `act` gives; while a checkpoint of the job's supervisor is in its way, it is tried again.

    Raises:
        Locked: something else is in its way, or that for too long.
        Exception: what `act` raises.
    """
    from ckpt.host.locks import patiently  # noqa: PLC0415

    is_supervised = name is not None and supervisor_of(name) is not None
    return patiently(act, _CHECKPOINT_PATIENCE_S if is_supervised else 0)


def saved_with(name: JobName) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the supervisor of a job saves with each checkpoint: named files, and its logs; nothing if it has none.

    Raises:
        ObjectCorrupt: what its supervisor does cannot be read.
    """
    from ckpt.host import supervision  # noqa: PLC0415

    supervised = supervision.load(jobs(), name)
    if supervised is None:
        return (), ()
    return supervised.with_files, supervision.appended_files(jobs(), name, supervised.log)


def kill_job(record: JobRecord) -> None:
    """Kill everything of the job, whose dump_lock() is held; when this returns, its end is written down.

    Raises:
        OsRefused: a task cannot be killed.
    """
    from ckpt.host import starting  # noqa: PLC0415

    starting.kill(record)
    # Where its shim was killed, too, nobody writes it down.
    with contextlib.suppress(NoSuchTarget, OsRefused):
        jobs().wait(record.name, _END_PATIENCE_S)


def dump_lock(record: JobRecord) -> AbstractContextManager[None]:
    """What a dump of this job holds until it has said what became of the job, also where that has ended.

    Raises:
        Locked: one is under way.
    """
    from ckpt.host.targets import HostTargets  # noqa: PLC0415
    from ckpt.model.target import Target, TargetRef  # noqa: PLC0415
    from ckpt.model.workload import TargetKind  # noqa: PLC0415

    ref = TargetRef(kind=TargetKind.JOB, name=record.name)
    return HostTargets(state(), jobs().cgroup_of).lock(
        Target(ref=ref, cgroup=record.cgroup, roots=(), job=record.name)
    )


def tidy_job(name: JobName) -> None:
    """Remove the cgroups of a job that has ended; nothing if it runs, perhaps again, or is gone.

    Those of a job that a guard will bring back stay: its memory limit is what somebody has to raise.
    """
    from ckpt.host.guard.waiting import waits  # noqa: PLC0415
    from ckpt.host.jobs import remove_cgroups  # noqa: PLC0415

    with contextlib.suppress(NoSuchTarget, ObjectCorrupt):
        view = jobs().look(name)
        if not view.is_alive and not waits(state(), name):
            remove_cgroups(view.record)


def forget_job(name: JobName) -> None:
    """Forget a job that does not run, with its logs and its volumes.

    Raises:
        NoSuchTarget: there is no such job.
        WrongState: it runs, or something uses a volume of it.
        Locked: another ckpt process is at it.
    """
    from ckpt.host import connection_locks  # noqa: PLC0415
    from ckpt.host.guard.waiting import forget  # noqa: PLC0415
    from ckpt.host.jobs import remove_cgroups  # noqa: PLC0415
    from ckpt.host.network.adapter import remove_of_job  # noqa: PLC0415
    from ckpt.host.suspended import HostSuspendedJobs  # noqa: PLC0415
    from ckpt.host.volumes import owning  # noqa: PLC0415

    registry = jobs()
    former = registry.find(name)
    owning.remove(state(), registry, name)
    registry.remove(name)
    connection_locks.release(former)
    forget(state(), name)
    if former is not None:
        remove_cgroups(former)
    remove_of_job(state(), name)
    # Else it would come back at the next boot.
    HostSuspendedJobs(registry).remove(name)


def volumes_of(name: JobName) -> tuple[str, ...]:
    """Where the volumes of a job are mounted, or belong; none if their list cannot be read."""
    from ckpt.host.volumes.book import Book  # noqa: PLC0415

    with contextlib.suppress(ObjectCorrupt):
        return tuple(record.mountpoint for record in Book(state()).of(name))
    return ()


def supervisor_of(name: JobName) -> Pid | None:
    """The process that takes the job's checkpoints; None if there is none."""
    from ckpt.host.supervision import supervisor_of as living  # noqa: PLC0415

    return living(jobs(), name)


def runs(name: JobName) -> bool:
    """Whether there is a job of this name that runs; one whose record cannot be read does not."""
    with contextlib.suppress(NoSuchTarget, ObjectCorrupt):
        return jobs().look(name).is_alive
    return False


def recover() -> tuple[RecoveryAction, ...]:
    """Undo what controllers left that died; gives what was done, and what could not be."""
    from ckpt.host.recovery import recover_all  # noqa: PLC0415
    from ckpt.host.virtual import registry  # noqa: PLC0415

    actions = recover_all(state())
    registry.sweep(state())
    return actions


def sweep_pins(store: Store) -> None:
    """Let go of the inodes that were kept for checkpoints which are not in the store any more."""
    from ckpt.host.inodes.pinbook import Pins  # noqa: PLC0415

    unreadable: list[Problem] = []
    known = {kept.id for kept in store.list(on_problem=unreadable.append)}
    if not unreadable:
        with contextlib.suppress(CkptError):  # what is left over keeps some space: nobody is worse off
            Pins(state()).sweep(os.path.abspath(store.place), known)


def release_pins(checkpoints: Iterable[CheckpointId], output: Output) -> None:
    """Let go of the inodes that were kept for these checkpoints, which are removed."""
    from ckpt.host.inodes.pinbook import Pins  # noqa: PLC0415

    try:
        Pins(state()).release(checkpoints)
    except CkptError as error:
        output.warn(error.message)


def local_path(place: str) -> str:
    """The directory of a store that is named so.

    Raises:
        StoreUnusable: ckpt knows no stores of that kind.
    """
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
