"""Durations, sizes and names as users write them, and the TARGET and REF of several commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import click

from ckpt.cli import suggestions
from ckpt.cli.call import usage
from ckpt.codec.names import refuse_label
from ckpt.errors import BadDuration, BadName
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import MILLISECOND, SECOND, ByteCount, JobName, Nanoseconds, Tag

_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", re.ASCII)
_DURATION_UNITS: Final = {"ms": MILLISECOND, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_SIZE: Final = re.compile(r"(\d{1,12})(?:([KMG])(?:iB)?|B)?", re.ASCII | re.IGNORECASE)
_SIZE_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30}


def duration(text: str) -> Nanoseconds:
    """The duration that the text means.

    Raises:
        BadDuration: it means none.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise BadDuration(text=text)
    return Nanoseconds(round(float(found[1]) * _DURATION_UNITS[found[2]]))


def duration_above_zero(text: str) -> Nanoseconds:
    """The duration that the text means, if it is more than zero.

    Raises:
        BadDuration: it means none.
        BadParameter: it is zero.
    """
    found = duration(text)
    if found == 0:
        raise click.BadParameter("must be more than zero.")
    return found


def size(text: str) -> ByteCount:
    """The number of bytes that the text means: "4096", "64K", "64MiB"; units are powers of 1024.

    Raises:
        BadParameter: it means none.
    """
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a size: write 4096, 64K, 16M or 1G.")
    return ByteCount(int(found[1]) * _SIZE_UNITS.get((found[2] or "").upper(), 1))


def volume(text: str) -> tuple[str, ByteCount | None]:
    """The place and the size of a volume: "/srv/data:512M"; None for the size that it has, or the default.

    Raises:
        BadParameter: no absolute path, or the size is none.
    """
    place, colon, after = text.rpartition(":")
    # A path may have colons: what stands after the last one is a size, or part of the path.
    has_size = bool(colon) and "/" not in after
    place = place if has_size else text
    if not place.startswith("/"):
        raise click.BadParameter(f"{place!r} is not an absolute path.")
    return place.rstrip("/") or "/", size(after) if has_size else None


def job_name(text: str) -> JobName:
    """The text as the name of a job.

    Raises:
        BadName: no job can have it.
    """
    return JobName(_label("job", text))


def group_name(text: str) -> JobName:
    """The text as the name of a group of jobs.

    Raises:
        BadName: no group can have it.
    """
    return JobName(_label("group", text))


def tag_name(text: str) -> Tag:
    """The text as a tag.

    Raises:
        BadName: no tag can have it.
    """
    return Tag(_label("tag", text))


def _label(kind: str, text: str) -> str:
    if refuse_label(text):
        raise BadName(kind=kind, name=text)
    return text


def job_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument NAME: a job."""
    return click.argument("name", type=job_name, shell_complete=suggestions.jobs)(function)


def ref_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument REF: a checkpoint."""
    return click.argument("ref", metavar="REF", shell_complete=suggestions.refs)(function)


def target_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the three ways to name a TARGET: pid, cgroup and name."""
    function = click.argument(
        "name", type=job_name, required=False, metavar="[NAME]", shell_complete=suggestions.jobs
    )(function)
    function = click.option("--cgroup", metavar="PATH", help="Every process in this cgroup and below it.")(
        function
    )
    return click.option(
        "--pid", type=click.IntRange(min=1), metavar="N", help="This process and its descendants."
    )(function)


def target_ref(pid: int | None, cgroup: str | None, name: str | None) -> TargetRef:
    """What exactly one of the three names.

    Raises:
        UsageError: none was given, or several.
    """
    match pid, cgroup, name:
        case int(), None, None:
            return TargetRef(kind=TargetKind.PID, name=str(pid))
        case None, str(), None:
            return TargetRef(kind=TargetKind.CGROUP, name=str(cgroup))
        case None, None, str():
            return TargetRef(kind=TargetKind.JOB, name=str(name))
        case _:
            raise usage("Give exactly one target: --pid N, --cgroup PATH, or a job's NAME.")
