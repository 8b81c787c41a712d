"""Which tests may run beside each other when several workers share them (pytest -n).

Rules:
- The tests of one file run in one worker: they share what is dear to set up.
- So do all files that recover: `ckpt recover` mends what any dead ckpt of this machine has left in its cgroups, and
  would mend before its own test what another one has left on purpose.
"""

from __future__ import annotations

import functools
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Another worker, or another user of the machine, may have the CPU just then.
settings.register_profile("side-by-side", deadline=None)
settings.load_profile("side-by-side")

_ROOT = Path(__file__).parents[1]
_RECOVERS = re.compile(r'"recover"|recover_all|--resume|real\.(crashing|surviving)')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """By file, but for those that recover."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "recovering" if _recovers(file) else file

    return ByFile(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the empty cgroups in which ckpt puts those of its jobs, when the last worker has ended."""
    if not hasattr(config, "workerinput"):
        for pattern in ("ckpt", "*/ckpt"):
            for folder in Path("/sys/fs/cgroup").glob(pattern):
                with suppress(OSError):  # somebody has jobs on this machine, or it is not ours
                    folder.rmdir()


@functools.cache
def _recovers(file: str) -> bool:
    return file.startswith("tests/system/") and _RECOVERS.search((_ROOT / file).read_text()) is not None
