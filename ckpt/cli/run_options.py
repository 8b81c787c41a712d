"""The options of `ckpt run`, and the value that they make: how a command is started, and how it is supervised.

Rule: an option that would do nothing as the call stands is refused, and says what it needs.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import click
from click.core import ParameterSource

from ckpt.cli import wiring
from ckpt.cli.call import Call, usage
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.group_options import group_option
from ckpt.cli.network_option import network
from ckpt.cli.parameters import duration_above_zero, job_name, size, volume
from ckpt.model.network import Network
from ckpt.model.supervision import (
    GRACE_DEFAULT,
    KEEP_DEFAULT,
    MAX_FROZEN_DEFAULT,
    MTBF_DEFAULT,
    AtEnd,
    Interval,
    OnTerm,
    Standing,
    Supervision,
)
from ckpt.units import ByteCount, JobName

_AUTO: Final = "auto"
_PERCENT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%?", re.ASCII)
_SUPERVISED: Final = "--every, --resume, --on-term checkpoint or --group"
"""Any of these has a job supervised."""

_STORING: Final = ("keep", "at_end", "store_max")
_TAKING: Final = (
    "with_files",
    "tcp_established",
    "tcp_close",
    "shell_job",
    "external_unix",
    "ghost_limit",
)
_NEEDS_SUPERVISION: Final = (*_STORING, *_TAKING)

SECTIONS: Final = {
    "The job": ("name", "detach", "log", "tty", "memory_max", "volumes", "own_network"),
    "Checkpoints while it runs": (
        *("every", "max_frozen", "mtbf", "resume", "on_term", "grace", "group"),
        *_STORING,
    ),
    "What they take": _TAKING,
}
"""The sections of the help, with the names of the parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCall:
    """What the user asked for; `supervision` None takes no checkpoints. `log` "" means the job's own."""

    job: JobName
    words: tuple[str, ...]
    detach: bool
    log: str
    volumes: tuple[tuple[str, ByteCount | None], ...]
    network: Network | None
    resume: bool
    tty: bool
    supervision: Supervision | None
    memory_max: ByteCount | None = None


def run_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; run_call() makes a value of them."""
    for option in reversed((*_START, *_CHECKPOINTS)):
        function = option(function)
    return function


def run_call(call: Call, given: Mapping[str, Any]) -> RunCall:
    """What the user gave.

    Raises:
        UsageError: it does not fit together.
        StoreUnusable: a supervised job's store is a URL of a kind that ckpt does not know.
    """
    if call.json and not given["detach"]:
        raise usage("In the foreground stdout belongs to CMD: --json needs --detach.")
    if given["resume"] and not given["name"]:
        raise usage("--resume needs --name: under another name the checkpoints could not be found again.")
    return RunCall(
        job=JobName(given["name"] or default_name(given["words"][0])),
        words=given["words"],
        detach=given["detach"],
        log=os.path.abspath(given["log"]) if given["log"] else "",
        volumes=given["volumes"],
        network=given["own_network"],
        resume=given["resume"],
        tty=given["tty"],
        supervision=_supervision(call, given),
        memory_max=given["memory_max"],
    )


def default_name(program: str) -> str:
    """A name for a job that was given none: the program's, and a suffix that no other job has."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(program))[:40].lstrip("._-")
    return f"{base or 'job'}-{secrets.token_hex(3)}"


def _supervision(call: Call, given: Mapping[str, Any]) -> Supervision | None:
    on_term = OnTerm(given["on_term"])
    _refuse_idle(given, on_term)
    if not _is_supervised(given, on_term):
        return None
    return Supervision(
        store=os.path.abspath(wiring.local_path(call.store)),
        log=os.path.abspath(given["log"]) if given["log"] else "",
        interval=_interval(given),
        keep=given["keep"],
        on_term=on_term,
        grace_ns=given["grace"],
        at_end=AtEnd(given["at_end"]),
        with_files=tuple(map(os.path.abspath, given["with_files"])),
        store_max=ByteCount(given["store_max"] or 0),
        group=given["group"] or "",
        options=dump_options(given),
        standing=Standing.BACKGROUND if given["detach"] else Standing.FOREGROUND,
    )


def _is_supervised(given: Mapping[str, Any], on_term: OnTerm) -> bool:
    return bool(
        given["every"] is not None or given["resume"] or on_term is OnTerm.CHECKPOINT or given["group"]
    )


def _refuse_idle(given: Mapping[str, Any], on_term: OnTerm) -> None:
    every: Interval | None = given["every"]
    wants = dict.fromkeys(_NEEDS_SUPERVISION, _SUPERVISED) if not _is_supervised(given, on_term) else {}
    if every is None:
        wants["max_frozen"] = "--every"
    if every is None or not every.auto:
        wants["mtbf"] = "--every auto"
    if on_term is not OnTerm.CHECKPOINT:
        wants["grace"] = "--on-term checkpoint"
    context = click.get_current_context()
    for name, needed in wants.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise usage(f"--{name.replace('_', '-')} needs {needed}.")


def _interval(given: Mapping[str, Any]) -> Interval | None:
    every: Interval | None = given["every"]
    if every is None:
        return None
    return replace(every, max_frozen=given["max_frozen"], mtbf_ns=given["mtbf"])


def _every(text: str) -> Interval:
    return Interval(auto=True) if text == _AUTO else Interval(every_ns=duration_above_zero(text))


def _share(text: str) -> float:
    found = _PERCENT.fullmatch(text)
    if found is None or not 0 < float(found[1]) <= 100:
        raise click.BadParameter(f"{text!r} is not a share of time: write 1% or 0.5%, at most 100%.")
    return float(found[1]) / 100


_START: Final = (
    click.option("--name", type=job_name, metavar="N", help="The job's name; default: CMD's and a suffix."),
    click.option("--detach", is_flag=True, help="Return at once; the job lives on."),
    click.option(
        "--log",
        default="",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Append the job's output to FILE instead of the job's own log.",
    ),
    click.option(
        "--tty",
        is_flag=True,
        help="Give the job a terminal of its own, joined to ours: keys, also Ctrl-C, and the size of the window go to it, "
        "what it shows goes to the log and to us.",
    ),
    click.option(
        "--memory-max",
        type=size,
        metavar="SIZE",
        help="Limit the job's memory: what 'ckpt guard' watches. The limit comes back with the job.",
    ),
    click.option(
        "--volume",
        "volumes",
        multiple=True,
        type=volume,
        metavar="PATH[:SIZE]",
        help="Give the job a file system of its own at PATH (default size: 1G). Its files are kept in every checkpoint, "
        "come back with it, and are the same files, by device and inode, on every host. Can be repeated.",
    ),
    click.option(
        "--net",
        "own_network",
        type=network,
        metavar="bridge=BR|macvlan=IF,address=ADDR/N[,gateway=ADDR][,mac=MAC][,mtu=N]",
        help="Give the job a network of its own: eth0 with this address, on a bridge or an interface of the host. Its "
        "connections come back with it, also on another host of the same network. address= and gateway= can be given "
        "for IPv4 and IPv6.",
    ),
)

_CHECKPOINTS: Final = (
    click.option(
        "--every",
        type=_every,
        metavar="DURATION|auto",
        help="Take a checkpoint this often; auto: by what one costs, and --mtbf.",
    ),
    click.option(
        "--max-frozen",
        type=_share,
        default=f"{MAX_FROZEN_DEFAULT:.0%}",
        show_default=True,
        metavar="PERCENT",
        help="Let the job stand still for at most this share of the time: checkpoints get rarer where they must.",
    ),
    click.option(
        "--mtbf",
        type=duration_above_zero,
        default=f"{MTBF_DEFAULT // 3600 // 10**9}h",
        show_default=True,
        metavar="DURATION",
        help="How long this host runs on average until it fails, for --every auto.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(min=0),
        default=KEEP_DEFAULT,
        show_default=True,
        metavar="N",
        help="Keep the newest N of these checkpoints; 0 keeps all. Those with a tag, and those of 'ckpt dump', stay.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on from the job's newest checkpoint that is whole; without any, start CMD. A job that runs is taken over.",
    ),
    click.option(
        "--on-term",
        type=click.Choice([each.value for each in OnTerm]),
        default=OnTerm.FORWARD.value,
        show_default=True,
        help="What SIGTERM means: it is CMD's, or a last checkpoint, then the end of CMD and exit code 75.",
    ),
    click.option(
        "--grace",
        type=duration_above_zero,
        default=f"{GRACE_DEFAULT // 10**9}s",
        show_default=True,
        metavar="DURATION",
        help="With --on-term checkpoint: if it is not durable by then, CMD gets the SIGTERM.",
    ),
    click.option(
        "--at-end",
        type=click.Choice([each.value for each in AtEnd]),
        default=AtEnd.SUCCESS.value,
        show_default=True,
        help="Remove these checkpoints when CMD ends: with code 0 (success), with any (delete), or never (keep). They "
        "stay when a signal ended it.",
    ),
    click.option(
        "--with-files",
        type=click.Path(),
        multiple=True,
        metavar="PATH",
        help="Keep this file, or all regular files in this directory, with each checkpoint; a resume puts them back. "
        "Can be repeated.",
    ),
    group_option(
        "The job belongs to this group: its jobs are checkpointed at one instant, and go on from there together."
    ),
    click.option(
        "--store-max",
        type=size,
        metavar="SIZE",
        help="After each checkpoint remove the store's oldest ones until it takes no more than this.",
    ),
    dump_parameters,
)
