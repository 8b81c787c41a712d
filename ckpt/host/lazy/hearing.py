"""Hears CRIU's restores: which tasks they make, with their userfaultfds, and what those lack.

Rule: whoever listens does so before CRIU begins; what a task's memory is asked for meanwhile waits in the kernel.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.host.criu.lazy_pages import SOCKET, heard_from, lazy_runs
from ckpt.host.lazy.places import listen_at
from ckpt.model.pages import PageRun
from ckpt.units import Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHooks:
    """Who is told of a tree; all are called from a thread of the tree's own.

    `came` gets a process, its userfaultfd, which belongs to it from then on, and the pages that it lacks; `ready` means
    that all tasks of the tree are about to run; `failed` gets the reason why no more can be heard.
    """

    came: Callable[[Pid, int, Iterable[PageRun]], None]
    ready: Callable[[], None]
    failed: Callable[[str], None]


def hear_tree(images: str, hooks: TreeHooks) -> None:
    """Listen for the restore of the image set in this directory, and return at once.

    Raises:
        OsRefused: it is not possible there.
    """
    listener = listen_at(f"{images}/{SOCKET}")
    threading.Thread(target=_hear, args=(listener, images, hooks), name="restore", daemon=True).start()


def _hear(listener: socket.socket, images: str, hooks: TreeHooks) -> None:
    try:
        with listener, listener.accept()[0] as restore:
            for told in heard_from(restore):
                if told is None:
                    hooks.ready()
                else:
                    hooks.came(told.pid, told.fd, lazy_runs(Path(images), told.pid))
    except CkptError as error:
        hooks.failed(error.message)
    except OSError as error:
        hooks.failed(f"CRIU's restore broke off: {error.strerror or error}")
