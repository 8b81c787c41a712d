"""ckpt is installed on another host, which needs nothing for it but a fitting Python and a login.

Rules: what is sent first is the source of setup_process.py, which does the work there; then the request, then the
release as a stream. Compiled modules are part of it, so the Python there must be of the same kind as the one here:
the first that fits is taken, and else it is refused with the versions. Every path is quoted. What comes from there is
bounded, and becomes a value here or an error. Without root's rights `sudo -n` is asked, as for the agent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Final

from ckpt.errors import SetupFailed, Usage
from ckpt.model.checks import HostCheck, State
from ckpt.remote.conversation import Conversation, Send, plain, shown
from ckpt.remote.setup_process import MARK, Request
from ckpt.remote.ssh import SshConnection

DEFAULT_PREFIX: Final = "/opt/ckpt"
INIT_PLACE: Final = "/opt/ckpt/libexec/ckpt-init"
"""The same on every host, whatever the prefix is: images name the init of their job by its path."""

COMMAND: Final = "/usr/local/bin/ckpt"

_ANSWER_S: Final = 30.0
_RESULT_S: Final = 300.0
_CHECKS_MAX: Final = 1000

_AS_ROOT: Final = 'if [ "$(id -u)" = 0 ]; then exec "$@"; fi; exec sudo -n -- "$@"'
_EACH: Final = """\
code=$1
shift
for name in "$@"; do
    path=$(command -v "$name") && "$path" -IS -c "$code"
done 2>/dev/null
exit 0
"""
_WHO: Final = (
    "import importlib.machinery as m, json, platform, sys; "
    f"print({MARK!r} + json.dumps([sys.executable, platform.python_version(), m.EXTENSION_SUFFIXES[0]]))"
)
_FIRST: Final = "import sys; exec(compile(sys.stdin.buffer.read({count}), 'ckpt host setup', 'exec'))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A ckpt with all that it needs: its version, and what tells builds of one version apart."""

    version: str
    digest: str

    @property
    def build(self) -> str:
        """As much of the digest as people need."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is to be installed: the release, its init, and the tag of the Pythons that its modules fit."""

    release: Release
    init_name: str
    init_digest: str
    python_tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """An interpreter of the other host."""

    path: str
    version: str
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How it ended: `is_new` is False where nothing was to do, or nothing should be done."""

    python: Python
    was: Release | None
    is_current: bool
    is_new: bool
    has_other_init: bool
    sent_bytes: int
    checks: tuple[HostCheck, ...]


def check_prefix(prefix: str) -> str:
    """The prefix, if it is a path below which ckpt may be installed.

    Raises:
        Usage: it is none.
    """
    parts = prefix.split("/")[1:]
    if (
        not prefix.startswith("/")
        or {"", ".", ".."} & set(parts)
        or prefix.split() != [prefix]
        or plain(prefix) != prefix
    ):
        raise Usage(
            problem=f"{prefix!r} is no prefix for ckpt.",
            remedy="Give an absolute path without blanks and dots, as in --prefix /opt/ckpt.",
        )
    return prefix


def install(
    connection: SshConnection,
    offer: Offer,
    send: Send,
    announce: Callable[[str], None],
    *,
    prefix: str = DEFAULT_PREFIX,
    force: bool = False,
    dry_run: bool = False,
) -> Installation:
    """Install the release there, and let it test itself, unless it is there already.

    Args:
        connection: The way there.
        offer: What is installed.
        send: Where its content comes from.
        announce: Is told of each phase.
        prefix: Where it is installed.
        force: Also where it is there already.
        dry_run: Only look.

    Raises:
        SetupFailed: it cannot be installed; the former release there is as it was.
        PeerFailed: the connection broke. The other host has the former release, or the new one, tested.
    """
    python = _fitting(connection, offer)
    source = resources.files("ckpt.remote").joinpath("setup_process.py").read_bytes()
    request = Request(
        prefix=check_prefix(prefix),
        init_place=INIT_PLACE,
        command=COMMAND,
        version=offer.release.version,
        digest=offer.release.digest,
        init_name=offer.init_name,
        force=force,
        dry_run=dry_run,
    )
    words = (python.path, "-IS", "-c", _FIRST.format(count=len(source)))
    with Conversation(connection, _AS_ROOT, words) as there:
        opening = source + json.dumps(asdict(request)).encode() + b"\n"
        there.send(lambda sink: sink(opening))
        standing = there.answer(_ANSWER_S)
        was, is_current = _was(standing, connection.host), standing.get("up_to_date") is True
        checks: tuple[HostCheck, ...] = ()
        is_new = not dry_run and (force or not is_current)
        if is_new:
            announce("sending ckpt and CRIU")
            there.send(send)
            announce("waiting for its self-test")
            while "phase" in (result := there.answer(_RESULT_S)):
                pass
            checks = _checks(result, connection.host)
    return Installation(
        python=python,
        was=was,
        is_current=is_current,
        is_new=is_new,
        has_other_init=standing.get("init") not in {"", offer.init_digest},
        sent_bytes=there.sent_bytes,
        checks=checks,
    )


def _fitting(connection: SshConnection, offer: Offer) -> Python:
    """The first interpreter there that can load our modules.

    Raises:
        SetupFailed: there is none; names those that there are.
    """
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = (f"/usr/bin/python{minor}", f"/usr/local/bin/python{minor}", f"python{minor}", "python3")
    found: dict[str, Python] = {}
    with Conversation(connection, _EACH, (_WHO, *names)) as there:
        for document in there.answers(_ANSWER_S):
            match document:
                case [str(path), str(version), str(suffix)] if path.startswith("/"):
                    tag = suffix.strip(".").removesuffix(".so")
                    found[path] = Python(path=path, version=plain(version), tag=plain(tag))
                case _:
                    continue
    for python in found.values():
        if python.tag == offer.python_tag:
            return python
    remedy = f"Install Python {minor} there (the package python{minor}), or clone ckpt there and run scripts/setup."
    if not found:
        raise SetupFailed(host=connection.host, reason="there is no python3", remedy=remedy)
    those = "; ".join(f"{plain(each.path)} is {each.version} ({each.tag})" for each in found.values())
    raise SetupFailed(
        host=connection.host,
        reason=f"the modules here are made for Python {minor} ({offer.python_tag}), and there {those}",
        remedy=remedy,
    )


def _was(standing: dict[str, Any], host: str) -> Release | None:
    match standing.get("was"):
        case None:
            return None
        case {"version": str(version), "digest": str(digest)}:
            return Release(version=shown(version), digest=shown(digest))
        case _:
            raise SetupFailed(host=host, reason="it does not say which release is there")


def _checks(result: dict[str, Any], host: str) -> tuple[HostCheck, ...]:
    found: list[HostCheck] = []
    given = result.get("checks")
    for each in given[:_CHECKS_MAX] if isinstance(given, list) else (None,):
        match each:
            case {"name": str(name), "state": str(state), "detail": str(detail), "remedy": str(remedy)} if (
                state in set(State)
            ):
                found.append(
                    HostCheck(
                        name=shown(name), state=State(state), detail=shown(detail), remedy=shown(remedy)
                    )
                )
            case _:
                raise SetupFailed(host=host, reason="its self-test says what is no finding")
    return tuple(found)
