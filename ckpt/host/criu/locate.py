"""Find the CRIU that ckpt uses.

Rule: $CKPT_CRIU is an order: if it names nothing that runs, that is an error and no other place is tried.
What this CRIU can do is probed (engine.features), never concluded from its version.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ckpt.errors import CriuMissing

PRIVATE: Final = Path("/opt/ckpt/criu/bin/criu")
"""Where scripts/setup puts a CRIU of ckpt's own."""

_LIB: Final = Path(__file__).parents[3]
_MANIFEST: Final = _LIB / "setup.json"
"""What is there in a release that `ckpt host setup` installed, and in no checkout: above one, anybody may write."""

BESIDE: Final = _LIB.parent / "criu/bin/criu"
"""Where the CRIU of such a release is."""

MINIMUM: Final = (4, 2)
"""Older ones fail on kernel 6.18 for every inet socket; named in messages, never compared to decide."""


def find_criu(environment: Mapping[str, str] = os.environ, private: Path = PRIVATE) -> Path:
    """The path of CRIU: $CKPT_CRIU, else that of this release, else the private one, else the first in PATH.

    Raises:
        CriuMissing: none of them is there; names the places.
    """
    ordered = environment.get("CKPT_CRIU", "")
    if ordered:
        if not _runs(Path(ordered)):
            raise CriuMissing(places=(f"{ordered} ($CKPT_CRIU)",))
        return Path(ordered).absolute()
    if _MANIFEST.is_file() and _runs(BESIDE):
        return BESIDE
    if _runs(private):
        return private
    search = environment.get("PATH", os.defpath)
    found = shutil.which("criu", path=search)
    if found is None:
        raise CriuMissing(places=("$CKPT_CRIU (not set)", str(private), f"PATH ({search})"))
    return Path(found).absolute()


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
