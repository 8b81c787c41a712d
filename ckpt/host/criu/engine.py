"""What CRIU is asked to do, whole: dump, restore, and the questions about itself.

Rules: a failure is explained from the log, with a remedy where the cause is known. A restore never starts
from an image set that is incomplete. Statistics are read where the answer was success.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Self

from ckpt.errors import CriuDied, CriuError, CriuStuck, DumpFailed, RestoreFailed
from ckpt.host.criu.causes import explain
from ckpt.host.criu.complete import check_complete
from ckpt.host.criu.log import read_log
from ckpt.host.criu.outcome import CriuVersion, DumpOutcome, Features, RestoreOutcome
from ckpt.host.criu.request import DumpRequest, RestoreRequest
from ckpt.host.criu.rpc import cpuinfo_message, dump_message, restore_message
from ckpt.host.criu.statistics import read_dump_statistics, read_restore_statistics
from ckpt.host.criu.worker import Hooks, Notice, Worker, advance, converse, run_hook
from ckpt.units import SECOND, Nanoseconds, Pid

_QUESTION_TIMEOUT: Final = Nanoseconds(30 * SECOND)


def dump(worker: Worker, request: DumpRequest, hooks: Hooks | None = None) -> DumpOutcome:
    """Dump a tree, letting the hooks take part.

    The hook "pre-dump" is called when CRIU is ready and has touched nothing: the place to freeze. At
    "post-dump" the images are written and the tasks still stand; if that hook raises, they go on.

    Raises:
        DumpFailed: the tasks are as they were.
        CriuStuck, CriuDied, Interrupted: CRIU has ended; the cgroup may be thawed, whatever it was before.
        OsRefused: its config file cannot be written.
        Exception: what a hook raised.
    """
    try:
        answer, raised = converse(
            worker, dump_message(request), operation="the dump", timeout=request.timeout, hooks=hooks or {}
        )
    except CriuError as error:
        raise _explained(error, request.log) from error
    # On success CRIU only has to exit: nobody waits for that, least of all under a freeze.
    if raised is not None:
        worker.close()
        raise raised
    if not answer.success:
        worker.close()
        raise _failure(DumpFailed, worker, answer, request.log)
    return DumpOutcome(
        pid=request.pid,
        statistics=read_dump_statistics(request.work_directory / "stats-dump"),
        log=request.log,
    )


class HeldRestore:
    """A restore that stands at its commit point: every task exists and none has run.

    Made by begin_restore(). Exactly one of finish() and abort() ends it; leaving the with block aborts. Between,
    come_up() may bring the tasks to the instant before their first step; then abort() ends CRIU alone, and who
    called it must have killed the tasks.
    """

    def __init__(self, worker: Worker, request: RestoreRequest, hooks: Hooks, pid: Pid) -> None:
        self._worker = worker
        self._request = request
        self._hooks = hooks
        self._pid = pid
        self._over = False
        self._is_up = False

    @property
    def pid(self) -> Pid:
        """The restored root's pid, as CRIU's PID namespace sees it."""
        return self._pid

    def come_up(self) -> None:
        """Let CRIU do all that is left but to let go of the tasks, which have their last registers then.

        CRIU holds them by ptrace, and waits; nothing can make it take them back from here on.

        Raises:
            RestoreFailed, CriuStuck, CriuDied, Interrupted: nothing is left of it.
        """
        try:
            self._worker.reply(success=True)
            while True:
                received = self._worker.receive()
                if received.notice is None:
                    self._over = True
                    _not_held(self._worker, self._request, received.response, None)
                    return
                if received.notice.phase == "pre-resume":
                    self._is_up = True
                    return
                _, trouble = run_hook(received.notice, self._hooks)
                self._worker.reply(success=trouble is None)
        except CriuError as error:
            self._over = True
            raise _explained(error, self._request.log) from error

    def finish(self) -> RestoreOutcome:
        """Let the tasks go on.

        Raises:
            RestoreFailed, CriuStuck, CriuDied, Interrupted: nothing is left of it.
        """
        self._over = True
        try:
            self._worker.reply(success=True)
        except CriuError as error:
            raise _explained(error, self._request.log) from error
        return _finish_restore(self._worker, self._request, self._hooks)

    def abort(self) -> None:
        """Remove every task of it; safe to repeat."""
        if self._over:
            return
        self._over = True
        if self._is_up:
            self._worker.kill()
            self._worker.close()
            return
        try:
            self._worker.reply(success=False)
            advance(self._worker, {})
        except CriuError:
            self._worker.kill()
        finally:
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def restore(worker: Worker, request: RestoreRequest, hooks: Hooks | None = None) -> RestoreOutcome:
    """Restore a tree, letting the hooks take part.

    At "post-restore" every task exists and none has run: if that hook raises, nothing is left of it. What
    "pre-resume" and "post-resume" raise comes too late to stop it: it is raised, and the tasks run.

    Raises:
        RestoreFailed: nothing of it is left, or the image set is not complete.
        CriuStuck, CriuDied, Interrupted: CRIU has ended, and nothing of it is left.
        OsRefused: its config file cannot be written.
        Exception: what a hook raised.
    """
    hooks = hooks or {}
    check_complete(request.images)
    try:
        worker.send(restore_message(request), operation="the restore", timeout=request.timeout)
    except CriuError as error:
        raise _explained(error, request.log) from error
    return _finish_restore(worker, request, hooks)


def begin_restore(worker: Worker, request: RestoreRequest, hooks: Hooks | None = None) -> HeldRestore:
    """Restore a tree up to its commit point, after the hook "post-restore" was called, and hold it there.

    Several trees can so be restored before any of them runs.

    Raises:
        What restore() raises.
    """
    hooks = hooks or {}
    check_complete(request.images)
    raised: BaseException | None = None
    try:
        worker.send(restore_message(request), operation="the restore", timeout=request.timeout)
        while True:
            received = worker.receive()
            if received.notice is None:
                return _not_held(worker, request, received.response, raised)
            externals, trouble = run_hook(received.notice, hooks)
            raised = raised or trouble
            if trouble is None and _is_commit_point(received.notice):
                return HeldRestore(worker, request, hooks, received.notice.pid or Pid(0))
            worker.reply(success=trouble is None, externals=externals)
    except CriuError as error:
        if raised is not None:
            raise raised from error
        raise _explained(error, request.log) from error


def _is_commit_point(notice: Notice) -> bool:
    return notice.phase == "post-restore"


def _not_held(
    worker: Worker, request: RestoreRequest, answer: Any, raised: BaseException | None
) -> HeldRestore:
    worker.close()
    raise raised or _failure(RestoreFailed, worker, answer, request.log)


def _finish_restore(worker: Worker, request: RestoreRequest, hooks: Hooks) -> RestoreOutcome:
    try:
        answer, raised = advance(worker, hooks)
    except CriuError as error:
        raise _explained(error, request.log) from error
    if raised is not None:
        worker.close()
        raise raised
    if not answer.success:
        worker.close()
        raise _failure(RestoreFailed, worker, answer, request.log)
    return RestoreOutcome(
        pid=Pid(answer.restore.pid),
        statistics=read_restore_statistics(request.work_directory / "stats-restore"),
        log=request.log,
    )


def version(criu: Path) -> CriuVersion:
    """What this CRIU says of itself.

    Raises:
        CriuDied, CriuStuck: it does not work at all.
    """
    with Worker.start(criu) as worker:
        return worker.version()


def features(criu: Path) -> Features:
    """What this CRIU can do on this kernel: each feature is probed by CRIU."""
    names = [field.name for field in fields(Features)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return Features(**dict(zip(names, pool.map(lambda name: _probe(criu, name), names), strict=True)))


def memory_can_follow(criu: Path) -> bool:
    """Whether tasks can be restored here before their memory: by userfaultfd(2), which also tells of forks and moves."""
    return _probe(criu, "uffd_noncoop")


def _probe(criu: Path, name: str) -> bool:
    # FEATURE_CHECK of the RPC knows three features, and does not say so of the others.
    feature = {"uffd_noncoop": "uffd-noncoop"}.get(name, name)
    command = [str(criu), "--no-default-config", "check", "--feature", feature]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_QUESTION_TIMEOUT / 1e9, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def write_cpuinfo(worker: Worker, images: Path) -> None:
    """Write this CPU's features to cpuinfo.img in `images`, for check_cpuinfo() on another host.

    Raises:
        DumpFailed: CRIU could not.
    """
    _cpuinfo(worker, images, DumpFailed, check=False)


def check_cpuinfo(worker: Worker, images: Path) -> None:
    """Check that what was dumped beside cpuinfo.img in `images` can run on this CPU.

    Raises:
        RestoreFailed: it lacks something; the log lines name it.
    """
    _cpuinfo(worker, images, RestoreFailed, check=True)


def _cpuinfo(worker: Worker, images: Path, kind: type[CriuError], *, check: bool) -> None:
    log = images / "cpuinfo.log"
    try:
        answer, _ = converse(
            worker,
            cpuinfo_message(images, check=check),
            operation="the check of the CPU",
            timeout=_QUESTION_TIMEOUT,
            hooks={},
        )
    except CriuError as error:
        raise _explained(error, log) from error
    if not answer.success:
        raise _failure(kind, worker, answer, log)


def _failure(kind: type[CriuError], worker: Worker, answer: Any, log: Path) -> CriuError:
    diagnosis = explain(read_log(log), worker.last_words or answer.cr_errmsg.strip())
    return kind(cause=diagnosis.cause, remedy=diagnosis.remedy, log_lines=diagnosis.lines, log_path=str(log))


def _explained(error: CriuError, log: Path) -> CriuError:
    diagnosis = explain(read_log(log), error.cause)
    match error:
        case CriuStuck(operation=operation, timeout_s=timeout_s):
            return CriuStuck(
                operation=operation,
                timeout_s=timeout_s,
                cause=diagnosis.cause,
                remedy=diagnosis.remedy,
                log_lines=diagnosis.lines,
                log_path=str(log),
            )
        case CriuDied(operation=operation, status=status):
            return CriuDied(
                operation=operation,
                status=status,
                cause=diagnosis.cause,
                remedy=diagnosis.remedy,
                log_lines=diagnosis.lines,
                log_path=str(log),
            )
        case _:
            return error
