"""This host as the ports of a check: it judges needs, and reads them from images and from what runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ckpt.host.criu.needs import read_needs
from ckpt.host.preflight.needs_of_target import needs_of_target
from ckpt.host.preflight.needs_rule import Here
from ckpt.host.preflight.needs_table import judge
from ckpt.model.findings import Finding
from ckpt.model.needs import ImageNeeds, Needs
from ckpt.model.target import Target

_READ: Final = (
    "inventory.img",
    "pstree.img",
    "files.img",
    "core-",
    "ids-",
    "mm-",
    "fdinfo-",
    "mountpoints-",
)


class HostJudge:
    """Fits the port `Judge`."""

    def __init__(self, *, state: str, store: str) -> None:
        """Judge by this host, with its state directory and its store, which need not exist."""
        self._state = state
        self._store = store

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        """Everything on this host that speaks against these needs, the gravest first."""
        return judge(needs, Here(state=self._state, store=self._store))


class CriuImageNeeds:
    """Fits the port `ImageNeedsReader`."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read."""
        return tuple(name for name in names if name.startswith(_READ))

    def read(self, fill: Callable[[str], None]) -> ImageNeeds:
        """What an image set needs; `fill` puts the wanted files into the directory that it is given.

        Raises:
            ObjectCorrupt, OsRefused: the images are not what they should be, or cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="ckpt-check-") as directory:
            fill(directory)
            return read_needs(Path(directory))


class HostTargetNeeds:
    """Fits the port `TargetNeedsReader`."""

    def __init__(self, state: str) -> None:
        """Keep the cache of digests below the directory `state`."""
        self._state = state

    def needs_of(self, target: Target) -> Needs:
        """What a workload that runs needs to be restored elsewhere."""
        return needs_of_target(target, self._state)
