"""The networks of one restore: made before CRIU begins, joined when nothing of it is taken back any more.

Rules:
- Joined when the connections are there, before a task takes its first step: earlier, what a peer sends again meets a
  namespace without the socket and is reset; later, what the tasks send first is lost.
- Then the peers are woken, who wait for their back-off (waking.py).
- Never joined before the restore is committed: what is killed with its network joined resets its connections, and in
  a migration the source has the addresses until then. The journal knows what is to be joined after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self

from ckpt.errors import CkptError
from ckpt.host.journal import NetworkDetached
from ckpt.host.network.building import BuiltNetwork, build, host_link_of
from ckpt.host.network.waking import wake_peers
from ckpt.host.operations import JournaledOperation
from ckpt.host.process_table import process_ref
from ckpt.model.network import LinkKind, Network
from ckpt.model.workload import Tree
from ckpt.units import JobName, Pid


class RestoredNetworks:
    """All networks of a restore; after close() the restored tasks alone keep them."""

    def __init__(self, built: tuple[BuiltNetwork, ...]) -> None:
        self._built = built
        self._steps: dict[str, NetworkDetached] = {}
        self._joined = False

    @classmethod
    def make(cls, networks: tuple[Network, ...], state: str, job: JobName) -> Self:
        """Make the networks of the job, whose lock the caller holds.

        Raises:
            FeatureMissing, CommandFailed, OsRefused: one cannot be made; none is left.
        """
        with ExitStack() as undo:
            built = []
            for number, network in enumerate(networks):
                built.append(build(network, host_link_of(state, job, number), restored=True))
                undo.callback(built[-1].close)
            undo.pop_all()
        return cls(tuple(built))

    def of(self, tree: Tree) -> dict[str, int]:
        """What CRIU inherits for the tree: from what its images call the namespace to a descriptor of it."""
        return {each.network.key: each.namespace for each in self._of(tree)}

    def note(self, tree: Tree, root: Pid, operation: JournaledOperation) -> None:
        """The tree is restored, its root has this pid: what a crash has to do with its network is noted.

        Raises:
            NoSpace: the state directory is full.
        """
        process = process_ref(root)
        for each in self._of(tree) if process is not None else ():
            assert process is not None
            network = each.network
            if each.host_link not in self._steps:
                step = NetworkDetached(
                    pid=process.pid,
                    start_ticks=process.start_ticks,
                    network=str(network.kind),
                    parent=network.parent,
                    link=each.host_link if network.kind is LinkKind.BRIDGE else network.interface,
                    committed=False,
                )
                operation.note(step)
                self._steps[each.host_link] = step

    def join(self, operation: JournaledOperation, pids: Callable[[], Iterable[Pid]]) -> tuple[str, ...]:
        """Let frames in and out, tell the neighbours and wake the peers; gives what went wrong, in sentences.

        Args:
            operation: Where it is noted.
            pids: Gives all restored processes, which stand still.
        """
        self._joined = True
        problems: tuple[str, ...] = ()
        for each in self._built:
            try:
                each.join()
                wake_peers(each.namespace, pids())
            except CkptError as error:
                problems += (f"the network on {each.network.parent} could not be joined: {error.message}",)
            if each.host_link in self._steps:
                operation.forget(self._steps[each.host_link])
        return problems

    def close(self) -> None:
        """Let go of them, and remove those that were not joined; safe to repeat."""
        built, self._built = self._built, ()
        for each in built:
            if not self._joined:
                each.remove()
            each.close()

    def _of(self, tree: Tree) -> tuple[BuiltNetwork, ...]:
        inodes = {namespace.inode for namespace in tree.namespaces if namespace.kind == "net"}
        return tuple(each for each in self._built if each.network.namespace in inodes)
