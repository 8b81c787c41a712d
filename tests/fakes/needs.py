"""Needs for tests: none of them, unless a test says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckpt.model.needs import Needs
from ckpt.units import ByteCount

NO_NEEDS = Needs(
    subject="checkpoint 0123456789ab",
    job=None,
    architecture="",
    cpu_features=(),
    criu_version="",
    pids=(),
    files=(),
    mounts=(),
    volumes=(),
    ports=(),
    networks=(),
    names=(),
    features=(),
    huge_pages=(),
    cgroups=(),
    descriptor_max=-1,
    memory_bytes=ByteCount(0),
    staging_bytes=ByteCount(0),
    store_bytes=ByteCount(0),
)


def needs(**changes: Any) -> Needs:
    return replace(NO_NEEDS, **changes)
