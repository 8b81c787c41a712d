"""The ways from one host to another: ckpt, and what people do with a bare CRIU and ssh."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from migrate_subject import TICKS_READY, Hosts, Pauses, Subject

from ckpt.host.criu.locate import find_criu
from ckpt.units import PAGE_BYTES

if TYPE_CHECKING:
    from harness.lab import Host

PORT = 7070
COMMAND_S = 120
TICKS_AFTER = 300
# What stays in the background must not hold the output that somebody reads to its end.
QUIET = "</dev/null >/dev/null 2>&1"
CIPHER = "aes128-gcm@openssh.com"


class WayError(Exception):
    """This way does not lead there; the text says why."""


@dataclass(frozen=True)
class Trip:
    """One migration: what the program saw, how long the commands took, and what went over the wire."""

    pauses: Pauses
    total_ms: float
    wire_bytes: int
    frozen_bytes: int = 0
    changed_pages: int = 0
    written_pages: int = 0
    rounds: int = 0

    @property
    def frozen_ratio(self) -> float:
        """Bytes sent under the freeze, as a multiple of the pages that had changed."""
        return self.frozen_bytes / (self.changed_pages * PAGE_BYTES) if self.changed_pages else 0.0


class Way(ABC):
    """One way."""

    name: ClassVar[str]

    def go(self, hosts: Hosts, size_mib: int, percent: float) -> Trip:
        """Start the program on the source, and move it.

        Raises:
            WayError: it did not arrive.
        """
        subject = hosts.new_subject(size_mib, percent)
        try:
            return self._go(hosts, subject)
        finally:
            hosts.clean()
            subject.log.unlink(missing_ok=True)

    @abstractmethod
    def _go(self, hosts: Hosts, subject: Subject) -> Trip: ...


class Bare(Way):
    """A way of shell commands on the source."""

    def _go(self, hosts: Hosts, subject: Subject) -> Trip:
        pid = hosts.start(subject)
        for host in hosts.both:
            host.must_run("mkdir", "-p", hosts.images(host))
        before = hosts.wire_bytes()
        began = time.time()
        run(hosts.bed.source, self.script(hosts, pid))
        total_ms = (time.time() - began) * 1000
        sent = hosts.wire_bytes() - before
        subject.await_ticks(TICKS_AFTER)
        return Trip(pauses=subject.pauses(began), total_ms=total_ms, wire_bytes=sent)

    @abstractmethod
    def script(self, hosts: Hosts, pid: int) -> str: ...


class OneHost(Bare):
    """No way at all: dumped and restored where it is."""

    name = "criu dump + restore, one host"

    def script(self, hosts: Hosts, pid: int) -> str:
        here = hosts.images(hosts.bed.source)
        # The init of the host must have reaped it: a zombie keeps the pid.
        gone = f"while [ -e /proc/{pid} ]; do sleep 0.002; done"
        return f"{dump(here, pid)}\n{gone}\n{restore(here)}"


class TarOverSsh(Bare):
    """Dump, copy, restore."""

    name = "criu dump, tar over ssh, restore"

    def script(self, hosts: Hosts, pid: int) -> str:
        here, there = (hosts.images(host) for host in hosts.both)
        far = shlex.quote(f"tar -C {there} -xf - && {restore(there)}")
        return f"{dump(here, pid)}\ntar -C {here} -cf - . | {ssh(hosts)} {far}"


class PageServer(Bare):
    """The pages go through a tunnel as they are dumped; the rest follows over the same connection."""

    name = "criu page-server by ssh -L, restore"

    def script(self, hosts: Hosts, pid: int) -> str:
        here, there = (hosts.images(host) for host in hosts.both)
        control = "-S /tmp/tunnel"
        listen = f"--address 127.0.0.1 --port {PORT}"
        serve = f"{find_criu()} page-server --images-dir {there} {listen} --daemon {QUIET}"
        far = f"{shlex.quote(f'tar -C {there} -xf - && {restore(there)}')}"
        return "\n".join(
            (
                f"{ssh(hosts, f'{control} -M -f -N -L {PORT}:127.0.0.1:{PORT} -o ExitOnForwardFailure=yes')} {QUIET}",
                f"trap '{ssh(hosts, f'{control} -O exit')} 2>/dev/null' EXIT",
                f"{ssh(hosts, control)} {shlex.quote(serve)}",
                dump(here, pid, f"--page-server {listen}"),
                f"tar -C {here} -cf - . | {ssh(hosts, control)} {far}",
            )
        )


class Ours(Way):
    """ckpt migrate."""

    name = "ckpt migrate"

    def _go(self, hosts: Hosts, subject: Subject) -> Trip:
        bed = hosts.bed
        job = hosts.ckpt.new_job_name()
        bed.source.ckpt(hosts.ckpt, "run", "--detach", "--name", job, "--", *subject.command)
        try:
            subject.await_ticks(TICKS_READY)
            before = hosts.wire_bytes()
            began = time.time()
            ended = bed.start_migration(job).wait(timeout_s=COMMAND_S)
            total_ms = (time.time() - began) * 1000
            sent = hosts.wire_bytes() - before
            if ended.exit_code:
                raise WayError(f"exit code {ended.exit_code}: {json.dumps(ended.document) + ended.errors}")
            subject.await_ticks(TICKS_AFTER)
            return self._trip(ended.document, subject, began, total_ms, sent)
        finally:
            for host in hosts.both:
                host.run(*hosts.ckpt.command_line("rm-job", job, "--force"), environ=host.environ(hosts.ckpt))

    def _trip(self, said: dict[str, Any], subject: Subject, began: float, total_ms: float, sent: int) -> Trip:
        pauses = subject.pauses(began)
        *earlier, last = said["rounds"]
        # A page that is written while the last round before the freeze reads it may have to be sent once more.
        window_s = earlier[-1]["ms"] / 1000 if earlier else 0.0
        return Trip(
            pauses=pauses,
            total_ms=total_ms,
            wire_bytes=sent,
            frozen_bytes=last["sent_bytes"],
            changed_pages=last["changed_pages"],
            written_pages=subject.written(pauses.down_at - window_s, pauses.down_at),
            rounds=len(said["rounds"]),
        )


WAYS: tuple[Way, ...] = (OneHost(), TarOverSsh(), PageServer(), Ours())


def dump(images: Path, pid: int, *options: str) -> str:
    words = f"--tree {pid} --images-dir {images} --network-lock nftables --manage-cgroups=ignore"
    return f"{find_criu()} dump {words} --log-file dump.log -v2 {' '.join(options)}"


def restore(images: Path) -> str:
    words = f"--images-dir {images} --manage-cgroups=ignore --restore-detached"
    return f"{find_criu()} restore {words} --log-file restore.log -v2 {QUIET}"


def ssh(hosts: Hosts, options: str = "") -> str:
    server, target = hosts.bed.ssh, hosts.bed.address_of(hosts.bed.target)
    known = f"-o UserKnownHostsFile={server.known_hosts} -o StrictHostKeyChecking=yes"
    return (
        f"ssh -F none -c {CIPHER} -i {server.folder}/client-key -o BatchMode=yes {known} {options} {target}"
    )


def run(host: Host, script: str) -> None:
    """Run a script on the host that stops at its first failure.

    Raises:
        WayError: it failed; names its last words.
    """
    try:
        done = host.run("bash", "-e", "-o", "pipefail", "-c", script, timeout_s=COMMAND_S)
    except subprocess.TimeoutExpired as error:
        raise WayError(f"not done in {COMMAND_S} s") from error
    if done.returncode:
        raise WayError(f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
