"""Put the virtual layer over restored tasks that stand under ptrace, before their first step.

    libc's stat calls, patched      native speed; where they can be
    seccomp filter, supervisor      every other stat call: static programs, other libcs, what is executed later

Rules:
- A layer is over all tasks that could reach a file of its table, or over none.
- What the tasks see is asked from their side (asking.py): the table alone proves nothing.
- Until keep(), abandon() leaves nothing: the supervisor ends; the tasks must be killed by who calls it, because a
  filter cannot be taken away again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host import ptrace
from ckpt.host.inodes.matching import Match
from ckpt.host.inodes.planning import Plan
from ckpt.host.process_table import ProcessRef, process_ref
from ckpt.host.ptrace import Tracee
from ckpt.host.virtual import asking, patching, registry
from ckpt.host.virtual.calls import stat_calls
from ckpt.host.virtual.filter import layer_filter
from ckpt.host.virtual.injection import STRICT, inject, seccomp_mode
from ckpt.host.virtual.patching import NotPatched
from ckpt.host.virtual.server import VirtualServer
from ckpt.host.virtual.stub import StubTable
from ckpt.host.virtual.table import IdentityTable
from ckpt.model.inodes import Identity

PATCH: Final = "CKPT_INODE_PATCH"
"""Set to "no", libc is left as it is: every stat call of the tasks goes to the supervisor."""


def why_not() -> str:
    """Why no layer can be put over tasks on this machine; "" if it can."""
    if not ptrace.supported() or stat_calls() is None:
        return f"the registers and calls of {os.uname().machine} are not known"
    return ""


class Layer:
    """One layer, over the tasks of one restore. All of it is called from the thread that traces them."""

    def __init__(self, table: IdentityTable, *, state: str) -> None:
        """Show the identities of `table`; the layer is registered below the state directory `state`."""
        self._table = table
        self._state = state
        self._server: VirtualServer | None = None
        self._place: registry.LayerPlace | None = None
        self._covered: tuple[Tracee, ...] = ()
        self._askable: tuple[Tracee, ...] = ()
        self.problems: tuple[str, ...] = ()

    def start(self) -> None:
        """Start the supervisor, which comes up while other things are done; nothing for an empty table.

        Raises:
            OsRefused: it cannot be started.
        """
        if self._table:
            self._place = registry.create(self._state)
            self._server = VirtualServer.start(self._table, self._place.directory)

    def cover(self, tracees: Sequence[Tracee], plan: Plan) -> None:
        """Put the layer over the tasks, and take what an earlier restore left in their memory.

        Raises:
            OsRefused: it cannot be put over one of them.
        """
        covered = [
            tracee
            for tracee in tracees
            if (not plan.only_descriptors or tracee.pid in plan.holders)
            # It makes no stat calls: its first one would be its last.
            and seccomp_mode(tracee.pid) != STRICT
        ]
        pairs = self._table.items() if os.environ.get(PATCH) != "no" else ()
        shown, none = StubTable.of(pairs), StubTable.of(())
        patches = {
            tracee.pid: patching.patch(tracee, shown if tracee in covered else none) for tracee in tracees
        }
        if self._server is None or self._place is None:
            return
        self._askable = tuple(tracee for tracee in covered if seccomp_mode(tracee.pid) == 0)
        self._server.await_ready()
        with ExitStack() as descriptors:
            listeners = []
            for tracee in covered:
                patch = patches[tracee.pid]
                program = layer_filter(
                    self._place.number,
                    descriptors_only=plan.only_descriptors,
                    trusted=None if isinstance(patch, NotPatched) else patch.trusted,
                )
                listeners.append(inject(tracee, program))
                descriptors.callback(os.close, listeners[-1])
            self._server.add(listeners)
        self._covered = tuple(covered)

    def ask(self, matches: Iterable[Match]) -> dict[Match, Identity]:
        """What the tasks see of the files that the table is about.

        Tasks that have seccomp filters of their own are not asked: these may kill them for the call.

        Raises:
            OsRefused: a task cannot be asked.
        """
        concerned = {identity for pair in self._table.items() for identity in pair}
        doubtful = [match for match in matches if match.found in concerned or match.is_moved]
        try:
            return asking.ask({tracee.pid: tracee for tracee in self._askable}, doubtful)
        except OSError as error:
            raise OsRefused(
                operation="ask", subject="the restored tasks", reason=error.strerror or str(error)
            ) from error

    def keep(self, shim: ProcessRef) -> None:
        """The tasks are about to run: register the layer, which now lives as long as they do.

        Args:
            shim: Who adopts the orphans among their children.

        Raises:
            OsRefused: it cannot be registered.
        """
        if self._server is not None and self._place is not None:
            tasks = (process_ref(tracee.pid) for tracee in self._covered)
            registry.register(self._place.directory, (shim, *(task for task in tasks if task is not None)))
            self._server.close()
            self._server = None

    def abandon(self) -> None:
        """End the supervisor, unless keep() was called; safe to repeat."""
        if self._server is not None:
            self._server.stop()
            self._server = None
