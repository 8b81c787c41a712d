"""The virtual layer over programs of a test: raw_stats.c, the conversation with it, and a layer's parts put together."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from harness.processes import descendants, is_dead
from harness.waiting import await_condition

from ckpt.host import ptrace
from ckpt.host.process_table import ProcessRef, process_ref
from ckpt.host.virtual import registry
from ckpt.host.virtual.filter import layer_filter
from ckpt.host.virtual.injection import inject
from ckpt.host.virtual.server import VirtualServer
from ckpt.host.virtual.table import IdentityTable
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber, Pid

SOURCE = Path(__file__).parent / "raw_stats.c"


def compile_raw_stats(folder: Path) -> None:
    """Make folder/dynamic and folder/static."""
    for name, options in (("dynamic", []), ("static", ["-static"])):
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *options, SOURCE]
        subprocess.run([*command, "-o", folder / name], check=True)


def of(path: Path) -> Identity:
    found = path.lstat()
    return Identity(device=DeviceNumber(found.st_dev), inode=InodeNumber(found.st_ino))


def reference(pid: int) -> ProcessRef:
    found = process_ref(pid)
    assert found is not None
    return found


class Program:
    """A running raw_stats, and the conversation with it."""

    def __init__(
        self, program: Path, folder: Path, *, fifos: bool = False, within: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        requests, answers = (
            (_fifo(folder / name) for name in ("requests", "answers")) if fifos else (None, None)
        )
        self.process = subprocess.Popen(
            [*within, program],
            stdin=requests if fifos else subprocess.PIPE,
            stdout=answers if fifos else subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder,
        )
        self.pid = Pid(self.process.pid)
        self._requests = open(requests, "wb", buffering=0) if requests else self.process.stdin  # noqa: SIM115
        self._answers = open(answers, "rb") if answers else self.process.stdout  # noqa: SIM115
        assert self.ask("open 0 0 0 moved") == "3"
        assert self.ask("open 0 0 0 folder") == "4"
        assert self.ask("open 0 0 0 /proc") == "5"
        assert self.ask("open 0 0 0 untouched") == "6"
        assert self.ask(f"open {os.O_PATH | os.O_NOFOLLOW} 0 0 link") == "7"
        self.pid = Pid(descendants(self.process.pid)[-1])

    def send(self, line: str) -> None:
        assert self._requests is not None
        self._requests.write(f"{line}\n".encode())
        self._requests.flush()

    def hear(self) -> str:
        assert self._answers is not None
        return self._answers.readline().decode().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.hear()

    def identity(self, line: str) -> Identity | int:
        """What a stat call shows, or its error."""
        error, _, content = self.ask(line).partition(" ")
        if error != "0":
            return int(error)
        device, inode = struct.unpack_from("<QQ", bytes.fromhex(content))
        return Identity(device=DeviceNumber(device), inode=InodeNumber(inode))

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        await_condition(lambda: is_dead(self.pid), "the program's end")
        for stream in (self._requests, self._answers):
            assert stream is not None
            stream.close()


def _fifo(path: Path) -> int:
    os.mkfifo(path)
    return os.open(path, os.O_RDWR)


class Layer:
    """One layer over programs of a test."""

    def __init__(self, state: Path, table: IdentityTable) -> None:
        self.table = table
        self.place = registry.create(str(state))
        self.server = VirtualServer.start(table, self.place.directory)

    def cover(self, *programs: Program, descriptors_only: bool = False) -> None:
        tracees = ptrace.seize([program.pid for program in programs], lambda: None)
        with ExitStack() as descriptors:
            try:
                self.server.await_ready()
                listeners = []
                for tracee in tracees:
                    text = layer_filter(self.place.number, descriptors_only=descriptors_only)
                    listeners.append(inject(tracee, text))
                    descriptors.callback(os.close, listeners[-1])
                self.server.add(listeners)
                registry.register(self.place.directory, [reference(program.pid) for program in programs])
            finally:
                for tracee in tracees:
                    tracee.detach()

    def servers(self) -> tuple[Pid, ...]:
        return self.server.await_ready()

    @property
    def is_there(self) -> bool:
        return Path(self.place.directory).exists()
