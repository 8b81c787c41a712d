"""The controller's side of the file system: start its server, and hold the mount namespace in which it is seen.

Rule: there is nothing to be taken back. The namespace lives as long as this process holds it or a task lives in it;
with it go the mounts, the file system, and the server's processes, however the controller ends.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Self

from ckpt.errors import OsRefused
from ckpt.host.criu.launch import Child, Launch, Launcher
from ckpt.host.inodes.fuse.server_process import FAILED, MESSAGE_BYTES_MAX, READY, FileToShow

START_TIMEOUT_S: Final = 20.0

_PACKAGE_PLACE: Final = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
)
# -I -S: neither the user's settings nor the packages of others are loaded.
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from ckpt.host.inodes.fuse.server_process import main; "
    "main(sys.argv[2:])"
)


class FileView:
    """A mount namespace in which files are seen under other inode numbers."""

    def __init__(self, namespace: int) -> None:
        """Take over the descriptor of a mount namespace."""
        self._namespace = namespace

    @classmethod
    def start(cls, files: Iterable[FileToShow], *, place: str) -> Self:
        """Make the namespace, and the server of what is seen in it.

        Args:
            files: What is to be shown.
            place: An empty directory that is not needed afterwards.

        Raises:
            OsRefused: this kernel cannot, or a file cannot be shown; nothing is left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = os.memfd_create("ckpt-fuse-configuration")
        try:
            with ours:
                with theirs:
                    with open(config, "wb", closefd=False) as stream:
                        stream.write(json.dumps(list(files)).encode())
                    os.lseek(config, 0, os.SEEK_SET)
                    _start(config, theirs.fileno(), place)
                return cls(_receive(ours))
        except OSError as error:
            raise _failed(error.strerror or str(error)) from error
        finally:
            os.close(config)

    @property
    def descriptor(self) -> int:
        """The mount namespace; what is launched needs it among its kept descriptors."""
        return self._namespace

    def launcher(self, launcher: Launcher) -> Launcher:
        """Launch CRIU in the namespace: what it restores lives there."""
        return entering(f"/proc/self/fd/{self._namespace}", launcher)

    def close(self) -> None:
        """Let go of the namespace: without tasks in it, it is gone; safe to repeat."""
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


def entering(namespace: str, launcher: Launcher) -> Launcher:
    """The launcher, with the command to be run in the mount namespace that this path leads to."""

    def launch(what: Launch) -> Child:
        return launcher(replace(what, command=("nsenter", f"--mount={namespace}", "--", *what.command)))

    return launch


def _start(config: int, control: int, place: str) -> None:
    first = subprocess.Popen(
        [
            sys.executable,
            *("-I", "-S", "-c", _PROGRAM, _PACKAGE_PLACE),
            *(str(config), str(control), os.path.abspath(place)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(config, control),
        start_new_session=True,
        cwd="/",
    )
    # It leaves the server behind, and ends at once.
    first.wait()


def _receive(control: socket.socket) -> int:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if not poll.poll(START_TIMEOUT_S * 1000):
        raise _failed("it did not come up in time")
    word, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, 1)
    if word == READY and len(fds) == 1:
        os.set_inheritable(fds[0], False)
        return fds[0]
    raise _failed(word.removeprefix(FAILED).decode(errors="replace").strip() or "it ended")


def _failed(reason: str) -> OsRefused:
    return OsRefused(
        operation="show files under their inode numbers by",
        subject="a file system of ours",
        reason=reason,
    )
