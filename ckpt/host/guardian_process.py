"""The guardian's own process: waits for the end of its controller, and undoes what that one left.

Started by guardian.py as `python -I -S -c …`; see there for the rules.
Rule: only what `-I -S` offers is imported, and as little of it as possible: a dump waits for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from ckpt.host.recovery import RecoveryAction

READY: Final = b"ready"
DONE: Final = b"done"
END_TIMEOUT_MS: Final = 2000
LOG_BYTES_MAX: Final = 256 * 1024


def main(arguments: list[str]) -> NoReturn:
    """Guard one operation. Arguments: its directory, the socket's number, the controller's pid."""
    directory, number, controller = arguments[0], int(arguments[1]), int(arguments[2])
    for each in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGPIPE,
        signal.SIGTSTP,
    ):
        signal.signal(each, signal.SIG_IGN)
    _show_as("ckpt-guardian")
    # The controller, who needs READY and DONE, does not need these.
    from ckpt.host import locks, recovery  # noqa: PLC0415

    if not _dismissed(number, controller):
        _tell(directory, recovery.undo_operation(directory))
        # A dying process lets go of its locks after it has let go of the socket.
        _await_end(controller)
        locks.sweep(os.path.dirname(os.path.dirname(directory)) + "/locks")
    os._exit(0)  # there is nothing to clean up, and the controller waits


def _dismissed(number: int, controller: int) -> bool:
    """Wait for the end; True if it came with the word that dismisses."""
    ends = select.poll()
    ends.register(number, select.POLLIN)
    with contextlib.suppress(ProcessLookupError):
        # A child of the controller that has inherited the socket would keep it open: so watch the process too.
        pidfd = os.pidfd_open(controller)
        if os.getppid() != controller:
            return False
        ends.register(pidfd, select.POLLIN)
        with contextlib.suppress(OSError):
            os.write(number, READY)
        ready = dict(ends.poll())
        os.set_blocking(number, number in ready)
        # Reset: the controller died before it had read that we are ready.
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            return os.read(number, len(DONE)) == DONE
    return False


def _await_end(controller: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        ends = select.poll()
        ends.register(os.pidfd_open(controller), select.POLLIN)
        ends.poll(END_TIMEOUT_MS)


def _tell(directory: str, actions: Sequence[RecoveryAction]) -> None:
    """Leave word for people in recovered.log in the state directory: nobody is there to hear it."""
    path = os.path.dirname(os.path.dirname(directory)) + "/recovered.log"
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as stream:
        if stream.tell() > LOG_BYTES_MAX:
            stream.truncate(0)
        for action in actions:
            problem = f" ({action.problem})" if action.problem else ""
            stream.write(f"{when} {action.subject}: {action.done}{problem}\n")


def _show_as(name: str) -> None:
    """Set what ps(1) shows as the name, and ask the OOM killer to take others first."""
    for path, value in (("/proc/self/comm", name), ("/proc/self/oom_score_adj", "-900")):
        # Lowering the score needs CAP_SYS_RESOURCE; without it the guardian is as safe as any small process.
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as stream:
            stream.write(value)
