"""Prove that a CRIU works on this kernel: dump and restore a process that listens on a TCP socket.

`criu check` proves nothing: there are kernels on which it passes and every dump of a socket fails.

Rule: the process is our own, in its own session; whatever happens, it is killed and reaped by its pid.
Rule: everything is bounded in time; a CRIU that hangs is killed and has failed.

Usage: criu_selftest.py CRIU    prints one sentence; exit 0 it works, 1 it does not, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CRIU_TIMEOUT_S = 20
_ANSWER_TIMEOUT_S = 5
_PR_SET_CHILD_SUBREAPER = 36


class SelfTestError(Exception):
    """This CRIU does not work here; the text says what it could not do."""


def main(arguments: list[str]) -> int:
    """Test the CRIU that the one argument names; the exit code says whether it works."""
    match arguments:
        case ["--subject", descriptor]:
            return run_subject(socket.socket(fileno=int(descriptor)))
        case [criu] if not criu.startswith("-"):
            return test(criu)
    print(__doc__)
    return 0 if arguments == ["--help"] else 2


def test(criu: str) -> int:
    """Print the verdict on `criu` in one sentence; return the exit code that says the same."""
    started = time.monotonic()
    try:
        version = prove(criu)
    except SelfTestError as error:
        print(error)
        return 1
    taken_s = time.monotonic() - started
    print(f"{criu} {version} works: it dumped and restored a listening process in {taken_s:.2f} s")
    return 0


def prove(criu: str) -> str:
    """Take one process of our own through dump, kill and restore by `criu`; return its version.

    Raises:
        SelfTestError: a step failed, took too long, or the process did not go on.
    """
    try:
        version = _version(criu)
        with tempfile.TemporaryDirectory(prefix="ckpt-selftest-") as folder, _orphans_reaped():
            _dump_and_restore(criu, folder)
    except (SelfTestError, OSError) as error:
        raise SelfTestError(f"{criu} does not work on kernel {os.uname().release}: {error}") from error
    return version


def run_subject(listener: socket.socket) -> int:
    """Be the process that is dumped: count, and tell the count to everyone who connects."""
    count = 0
    while True:
        count += 1
        if select.select([listener], [], [], 0.002)[0]:
            connection, _ = listener.accept()
            connection.sendall(str(count).encode())
            connection.close()


def _version(criu: str) -> str:
    """The version that `criu --version` prints."""
    command = [criu, "--version"]
    try:
        shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_CRIU_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SelfTestError("it hangs at --version") from None
    found = re.search(r"^Version: (\S+)", shown.stdout, re.MULTILINE)
    if found is None:
        raise SelfTestError(f"it does not tell its version: {shown.stderr.strip()[-200:]}")
    return found[1]


def _dump_and_restore(criu: str, folder: str) -> None:
    subject, port = _start_subject()
    before = _ask(port)
    _criu(criu, "dump", folder, "--tree", str(subject.pid), "--network-lock", "nftables")
    _reap(subject)
    _criu(criu, "restore", folder, "--restore-detached")
    after = _ask(port)
    later = _ask(port)
    if not before < after < later:
        raise SelfTestError(f"the restored process did not go on counting: {before}, {after}, {later}")


def _start_subject() -> tuple[subprocess.Popen[bytes], int]:
    """Start the process to dump; return it and the port on which it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        subject = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "--subject", str(listener.fileno())],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        return subject, listener.getsockname()[1]


def _reap(subject: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the dumped process: its zombie would keep the pid that the restored one must get."""
    try:
        subject.wait(_ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SelfTestError("dump succeeded but did not kill the process") from None


def _ask(port: int) -> int:
    """The count of the process that listens on `port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_TIMEOUT_S) as connection:
            return int(connection.recv(32))
    except (OSError, ValueError) as error:
        raise SelfTestError(f"the process does not answer on its port: {error}") from error


def _criu(criu: str, act: str, folder: str, *options: str) -> None:
    command = [criu, act, "--images-dir", folder, "--log-file", f"{act}.log", "-v4", *options]
    # A session of its own, so that a hang is ended together with all that CRIU started.
    process = subprocess.Popen(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, complaint = process.communicate(timeout=_CRIU_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise SelfTestError(f"{act} hung for {_CRIU_TIMEOUT_S} s") from None
    if process.returncode != 0:
        raise SelfTestError(f"{act} failed: {_cause(Path(folder) / f'{act}.log') or complaint.strip()}")


def _cause(log: Path) -> str:
    """The last errors of a CRIU log, joined to one line."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        # Harmless, and the first error of every run without CAP_SYS_RESOURCE.
        errors = [line for line in lines if "Error" in line and "RLIMIT_NOFILE" not in line]
        return "; ".join(error.split("): ", 1)[-1] for error in errors[-3:])
    return ""


@contextlib.contextmanager
def _orphans_reaped() -> Iterator[None]:
    """Adopt what CRIU leaves running, and at the end kill and reap all children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SelfTestError(f"prctl: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        # A killed child hands us its own children: until there are none.
        while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            for child in map(int, children):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
