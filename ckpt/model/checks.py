"""What `ckpt doctor` says of a host: one thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCheck:
    """One thing that was looked at: `remedy` says what to do unless the state is ok."""

    name: str
    state: State
    detail: str
    remedy: str = ""
