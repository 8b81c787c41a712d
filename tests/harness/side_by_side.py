"""Tests that change what all processes of this machine share run while no other system test does.

Several workers (pytest -n) run system tests beside each other. A test that is marked `alone` writes a setting of the
kernel, compares all mounts before and after, or has to be done within a time: the other workers wait between two tests
until it is over.

Rules:
- Who waits to be alone lets nobody else begin: it waits for what runs now, and no longer.
- Nothing is held at a worker's end, however it ends: flock(2) goes with the process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_TESTS = Path(__file__).parents[1]

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""The name of this worker; empty where one process runs all tests."""


@contextmanager
def taking_part(*, alone: bool) -> Iterator[None]:
    """Run beside the other workers' system tests of this checkout, or without any of them."""
    if not WORKER:
        yield
        return
    with ExitStack() as held:
        # Folders can be locked as files can, and need not be removed.
        with _locked(_TESTS, fcntl.LOCK_EX):
            room = _TESTS / "system"
            held.enter_context(_locked(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, how)
        yield
    finally:
        # A child that was forked in the test may live on with a copy of the descriptor.
        fcntl.flock(held, fcntl.LOCK_UN)
        os.close(held)
