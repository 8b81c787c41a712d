"""The process on the other host that installs ckpt there. There is nothing of ckpt yet: this source itself is sent.

Rules: only Python's standard library is imported. Each release stands in a folder of its own in PREFIX/versions; the
link PREFIX/current says which one counts, and moves only when the new one has passed its self-test. Whatever ends this
process before, the former release is as it was; what is left over, the next set-up removes. What a process still uses
is not removed. The init of jobs has one place on all hosts, as images name it by its path: none is replaced there.
Said is one line of JSON after MARK at a time; what else the login prints is none of ours.
Source: rename(2), syncfs(2); tarfile's stream mode.
"""

from __future__ import annotations

import compileall
import ctypes
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol, cast

MARK: Final = "ckpt-host-setup "
MANIFEST: Final = "lib/setup.json"
"""In the folder of a release: what it is. By this file ckpt knows that its CRIU is beside it (ckpt/host/criu/locate.py)."""

SELF_TEST_S: Final = 180
SILENCE_S: Final = 120
_REQUEST_BYTES_MAX: Final = 64 * 1024
_PIECE_BYTES: Final = 1 << 20
_SHEBANG_MAX: Final = 120
_PROGRAM: Final = """\
#!{python} -IS
import sys

sys.path.insert(0, {lib!r})
from ckpt.cli.main import main

sys.exit(main())
"""


class Readable(Protocol):
    """A stream of bytes; a read gives at most so many, none at the end."""

    def read(self, count: int, /) -> bytes:
        """Some of it."""


class Refused(Exception):
    """It cannot be done; the text says why, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        """Take both."""
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be installed, and where: the fields of the first line that comes."""

    prefix: str
    init_place: str
    command: str
    version: str
    digest: str
    init_name: str
    force: bool
    dry_run: bool

    @property
    def versions(self) -> str:
        """The folder of all releases."""
        return f"{self.prefix}/versions"

    @property
    def current(self) -> str:
        """The link to the one that counts."""
        return f"{self.prefix}/current"


def main() -> int:
    """Do what standard input asks for: a line with the request, then the tar, if it is wanted."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    os.umask(0o022)
    try:
        fields = json.loads(sys.stdin.buffer.readline(_REQUEST_BYTES_MAX))
        # One name for each place: releases are told apart by their paths.
        fields["prefix"] = os.path.realpath(fields["prefix"])
        serve(Request(**fields), _Watched(sys.stdin.buffer))
    except Refused as refused:
        _say({"failed": str(refused), "remedy": refused.remedy})
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say({"failed": f"{where}{error.strerror or error}", "remedy": ""})
        return 1
    return 0


def serve(request: Request, stream: Readable) -> None:
    """Say what is there, and install what comes unless it is there already.

    Raises:
        Refused, OSError: it cannot be done; the former release is as it was.
    """
    _refuse_foreign(request)
    if request.dry_run:
        _say(_standing(request))
        return
    os.makedirs(request.versions, exist_ok=True)
    with _locked(f"{request.prefix}/setup.lock"):
        standing = _standing(request)
        former = _target(request.current)
        _say(standing)
        if standing["up_to_date"] and not request.force:
            return
        _sweep(request, former, _manifest(former).get("former", ""))
        place = f"{request.versions}/{request.version}-{request.digest[:12]}-{secrets.token_hex(4)}"
        try:
            with _undone_on_failure(request, place):
                checks = _install(request, place, former, stream)
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise Refused(f"what came is damaged, or not all of it came ({error})", "Try again.") from None
        _say({"installed": place, "checks": checks})
        _sweep(request, place, former)


def unpack(stream: Readable, place: str) -> str:
    """Write what the tar has into the folder; gives its digest, as ckpt/host/bundle.py defines it."""
    whole = hashlib.sha256()
    with tarfile.open(fileobj=cast("BinaryIO", stream), mode="r|gz", bufsize=_PIECE_BYTES) as archive:
        for member in archive:
            source = archive.extractfile(member)
            if source is None or member.name.startswith("/") or ".." in member.name.split("/"):
                raise Refused(f"{member.name!r} is no file that belongs there")
            path = f"{place}/{member.name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            own = hashlib.sha256()
            with source, open(path, "xb") as target:
                while piece := source.read(_PIECE_BYTES):
                    own.update(piece)
                    target.write(piece)
            executable = bool(member.mode & 0o100)
            os.chmod(path, 0o755 if executable else 0o644)
            whole.update(f"{member.name}\0{executable:d}\0{own.hexdigest()}\n".encode())
    return whole.hexdigest()


class _Watched:
    """Standard input, of which each read gives what is there; a dead connection is no reason to wait for ever."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        signal.signal(signal.SIGALRM, self._give_up)

    def read(self, count: int) -> bytes:
        signal.alarm(SILENCE_S)
        try:
            # The end of the tar is in it: whoever sends does not close the stream.
            return self._stream.read1(count)  # type: ignore[attr-defined,no-any-return]
        finally:
            signal.alarm(0)

    def _give_up(self, *_: object) -> None:
        raise Refused(f"nothing came for {SILENCE_S} s", "Try again.")


def _install(request: Request, place: str, former: str, stream: Readable) -> list[Any]:
    """Unpack, test, and put in place; gives what the self-test said."""
    os.mkdir(place)
    if unpack(stream, place) != request.digest:
        raise Refused("what came is not what was announced: files changed while they were sent", "Try again.")
    _write_program(place)
    with open(f"{place}/{MANIFEST}", "x", encoding="utf-8") as manifest:
        release = {"version": request.version, "digest": request.digest, "former": former}
        json.dump(release, manifest)
    _say({"phase": "compiling"})
    # What a dump imports late, under the freeze, shall not be compiled there. What cannot be compiled here will
    # not be there either: then the self-test says so.
    compileall.compile_dir(f"{place}/lib/ckpt", quiet=2)
    _bring_init(request, place)
    _flush(place)
    _say({"phase": "testing"})
    checks = _self_test(f"{place}/bin/ckpt")
    _point(request.current, place)
    _point(request.init_place, request.init_name)
    os.makedirs(os.path.dirname(request.command), exist_ok=True)
    _point(request.command, f"{request.current}/bin/ckpt")
    return checks


def _write_program(place: str) -> None:
    first = f"#!{sys.executable} -IS"
    if len(first) > _SHEBANG_MAX or len(first.split()) != 2:
        raise Refused(f"no script can begin with the path of this Python, {sys.executable}")
    os.mkdir(f"{place}/bin")
    path = f"{place}/bin/ckpt"
    with open(path, "x", encoding="utf-8") as program:
        program.write(_PROGRAM.format(python=sys.executable, lib=f"{place}/lib"))
    os.chmod(path, 0o755)  # noqa: S103 - a command for all users


def _bring_init(request: Request, place: str) -> None:
    """Put the init where images look for it, unless one of its name is there."""
    folder = os.path.dirname(request.init_place)
    os.makedirs(folder, exist_ok=True)
    goal = f"{folder}/{request.init_name}"
    if not os.path.exists(goal):
        new = f"{goal}.{secrets.token_hex(4)}"
        shutil.copy2(f"{place}/libexec/{request.init_name}", new)
        os.rename(new, goal)
        _flush(folder)
    if not os.path.exists(request.init_place):
        # The self-test looks for one.
        _point(request.init_place, request.init_name)


def _self_test(program: str) -> list[Any]:
    """What the new release says of this host.

    Raises:
        Refused: it does not work, or something that it needs is missing.
    """
    try:
        done = subprocess.run(
            [program, "doctor", "--self-test", "--json"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SELF_TEST_S,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": "/"},
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"its self-test did not end within {SELF_TEST_S} s") from None
    try:
        checks: list[Any] = json.loads(done.stdout)["checks"]
        missing = [check for check in checks if check["state"] == "missing"]
        reasons = "; ".join(f"{check['name']}: {check['detail']}" for check in missing)
        remedies = " ".join(check["remedy"] for check in missing)
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        said = " / ".join(lines) or "it said nothing"
        raise Refused(f"its self-test ended with exit code {done.returncode}: {said}") from None
    if missing:
        raise Refused(f"the host lacks what ckpt needs: {reasons}", remedies)
    return checks


def _standing(request: Request) -> dict[str, Any]:
    """The release that counts, and whether it is the one that is to be installed, with all that leads to it."""
    manifest = _manifest(request.current)
    leads = (
        _target(request.command) == f"{request.current}/bin/ckpt"
        and _target(request.init_place) == request.init_name
        and os.access(request.init_place, os.X_OK)
        and os.access(request.command, os.X_OK)
    )
    was = {"version": manifest["version"], "digest": manifest["digest"]} if manifest else None
    init = f"{os.path.dirname(request.init_place)}/{request.init_name}"
    return {
        "was": was,
        "up_to_date": leads and manifest.get("digest") == request.digest,
        "init": _digest_of(init),
    }


def _manifest(place: str) -> dict[str, str]:
    """What a release says of itself; nothing if it is none."""
    try:
        with open(f"{place}/{MANIFEST}", encoding="utf-8") as stream:
            found = json.loads(stream.read(_REQUEST_BYTES_MAX))
        return {name: str(found[name]) for name in ("version", "digest", "former")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _digest_of(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _refuse_foreign(request: Request) -> None:
    for link in (request.command, request.current, request.init_place):
        if os.path.lexists(link) and not os.path.islink(link):
            raise Refused(f"{link} is not a link, and not of ckpt", "Move it away.")


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _point(link: str, target: str) -> None:
    """Make the link lead there, in one step, durably."""
    if _target(link) == target:
        return
    new = f"{link}.{secrets.token_hex(4)}"
    os.symlink(target, new)
    os.rename(new, link)
    _flush(os.path.dirname(link))


def _flush(folder: str) -> None:
    """Make durable what is in the file system of this folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), folder)
    finally:
        os.close(fd)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Nobody else sets this host up; scripts/setup takes the same lock."""
    with open(path, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another set-up is running there", "Wait until it has ended.") from None
        yield


@contextmanager
def _undone_on_failure(request: Request, place: str) -> Iterator[None]:
    init = f"{os.path.dirname(request.init_place)}/{request.init_name}"
    had_init, had_link = os.path.lexists(init), os.path.lexists(request.init_place)
    try:
        yield
    except BaseException:
        if _target(request.current) != place:
            for path, was_there in ((request.init_place, had_link), (init, had_init)):
                if not was_there:
                    with suppress(OSError):
                        os.unlink(path)
            shutil.rmtree(place, ignore_errors=True)
        raise


def _sweep(request: Request, *kept: str) -> None:
    """Remove releases that are neither kept nor in use, and what a set-up that was ended left."""
    used = _command_lines()
    for name in os.listdir(request.versions):
        place = f"{request.versions}/{name}"
        if place not in kept and place.encode() not in used:
            shutil.rmtree(place, ignore_errors=True)


def _command_lines() -> bytes:
    """The command lines of all processes: ckpt's own that stay name the folder that they import from."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as stream:
                found.append(stream.read())
    return b"\n".join(found)


def _say(document: dict[str, Any]) -> None:
    # Who asked may be gone: what is under way ends nevertheless in one of the two states.
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{MARK}{json.dumps(document)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
