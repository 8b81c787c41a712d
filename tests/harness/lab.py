"""Hosts of a small lab: the same machine, seen from namespaces of its own.

A host has its own mounts (an overlay over the machine's root, so that what is installed is there and what is
written is not), pids, network, host name, IPC, cgroup version 2 root, and clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME
begin elsewhere. The wall clock, the kernel and the CPU are the machine's.

Rule: all of a host lives in one cgroup of its test, and its mounts in a namespace that ends with it: so the test's
traces remove it, also when it was made half.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.processes import MARK, reap_in_background
from harness.traces import Traces

# Its arguments: the name, a folder of the host's own, and folders that all hosts share. The shell stays as the
# init that reaps orphans.
_INIT = """
set -e
name=$1 place=$2
shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
cd "$place/root"
mount -t tmpfs -o mode=1777 tmpfs ./tmp
for shared in "$@"; do
    mkdir -p ".$shared"
    mount --bind "$shared" ".$shared"
done
mount -t proc proc ./proc
mount -t sysfs sysfs ./sys
mount -t cgroup2 cgroup2 ./sys/fs/cgroup
mount --bind /dev ./dev
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts ./dev/pts
mount -t tmpfs -o mode=1777 tmpfs ./dev/shm
mount -t tmpfs -o mode=755 tmpfs ./run
mkdir -p ./old.root
pivot_root . ./old.root
cd /
umount -l /old.root
hostname "$name"
ip link set lo up
echo ready
exec >/dev/null 2>&1
sleep infinity &
wait
"""

# The same without an overlay: what the machine has on its disk is the host's own, as the same files.
_INIT_AS_IS = """
set -e
mount --make-rprivate /
umount -R -l /sys/fs/cgroup
awk '$5 ~ "^/run/" { print $5 }' /proc/self/mountinfo | tac | while read -r place; do umount -l "$place"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
hostname "$1"
ip link set lo up
echo ready
exec >/dev/null 2>&1
sleep infinity &
wait
"""

STATE, STORE = Path("/var/lib/ckpt"), Path("/var/lib/ckpt-store")
"""Where a host with places of its own has them: each sees its own there, as real hosts do."""

CHECKOUT = Path(__file__).parents[2]
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--time")


class Host:
    """One host of the lab, up since it was made; the test's traces take it down."""

    def __init__(
        self,
        traces: Traces,
        name: str,
        *,
        shared: tuple[Path, ...] = (),
        monotonic_s: int = 0,
        boottime_s: int = 0,
        own_places: bool = False,
        own_root: bool = True,
        state_bytes: int = 0,
    ) -> None:
        """Bring it up.

        Args:
            traces: The test that it belongs to; its folder is shared by all hosts.
            name: The host name, unique in the test.
            shared: More folders that it shares with the machine; of all others it has a copy.
            monotonic_s: How far its CLOCK_MONOTONIC is ahead of the machine's.
            boottime_s: The same for CLOCK_BOOTTIME.
            own_places: Whether it has a store and a state of its own, at STATE and STORE as every such host; else it
                has the test's store, and a state in the test's folder.
            own_root: Whether its root is an overlay over the machine's; else it is the machine's itself, as the same
                files, but for what is in memory: /run and /dev/shm begin empty.
            state_bytes: The size of the file system of its own state, which is in memory; 0: it is on the disk.
        """
        self.name = name
        self._folder = traces.folder
        self.state = STATE if own_places else traces.folder / f"state-{name}"
        self.store = STORE if own_places else None
        self.cgroup = traces.cgroup(f"-host-{name}")
        # The command's own processes stand beside the jobs, which make their cgroups at the root.
        self.own = Cgroup(self.cgroup.path / "host").create()
        place = traces.folder / f"host-{name}"
        place.mkdir()
        with open(traces.folder / f"host-{name}.err", "wb") as errors:
            process = subprocess.Popen(
                self._joined(
                    self.cgroup,
                    *("unshare", *_NAMESPACES, f"--monotonic={monotonic_s}", f"--boottime={boottime_s}"),
                    *(
                        "--fork",
                        "--kill-child",
                        "/bin/sh",
                        "-c",
                        _INIT if own_root else _INIT_AS_IS,
                        "init",
                        name,
                        str(place),
                    ),
                    # The checkout may lie where a host has a file system of its own.
                    *map(str, (traces.folder, CHECKOUT, *shared)),
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, MARK: traces.mark},
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as answer:
            said = answer.readline()
        assert said == b"ready\n", (traces.folder / f"host-{name}.err").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.init = int(children[0])
        reap_in_background(process)
        if own_places:
            self._make_places(state_bytes)

    def run(
        self, *command: object, environ: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, to its end, in the test's folder."""
        return subprocess.run(
            self.command_line(*command),
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=environ,
        )

    def must_run(
        self, *command: object, environ: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> str:
        """Run a command on the host that must succeed; returns what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = self.run(*command, environ=environ, timeout_s=timeout_s)
        shown = f"{self.name}: {' '.join(map(str, command))}"
        assert done.returncode == 0, f"{shown}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(
        self, *command: object, environ: Mapping[str, str] | None = None, output: str
    ) -> subprocess.Popen[bytes]:
        """Start a command on the host; it writes to files of this name in the test's folder, .out and .err.

        The process is nsenter's, which ends as the command does; the command is its child.
        """
        out, err = (open(self._folder / f"{output}.{kind}", "wb") for kind in ("out", "err"))  # noqa: SIM115
        with out, err:
            return subprocess.Popen(
                self.command_line(*command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ
            )

    def command_line(self, *command: object) -> list[str]:
        """The words that start a command on the host."""
        return self._joined(
            self.own,
            *("nsenter", f"--target={self.init}", *_NAMESPACES, f"--root=/proc/{self.init}/root"),
            *(f"--wd=/proc/{self.init}/root{self._folder}", *map(str, command)),
        )

    def environ(self, ckpt: Ckpt, **more: str) -> dict[str, str]:
        """What ckpt is started with on the host: a state of its own, and the store that it has."""
        places = {"CKPT_STATE": str(self.state)}
        if self.store is not None:
            places["CKPT_STORE"] = str(self.store)
        return ckpt.environ(places | more)

    def path(self, inside: Path) -> Path:
        """How the machine comes to what has this path on the host."""
        return Path(f"/proc/{self.init}/root{inside}")

    def ckpt(
        self, ckpt: Ckpt, command: str, *arguments: object, exit_code: int = 0, timeout_s: float = 60
    ) -> dict[str, Any]:
        """Run `ckpt COMMAND --json ARGUMENTS…` on the host, with a state of the host's own.

        Raises:
            AssertionError: another exit code.
        """
        line = ckpt.command_line(command, "--json", *arguments)
        done = self.run(*line, environ=self.environ(ckpt), timeout_s=timeout_s)
        shown = f"{self.name}: ckpt {command} {' '.join(map(str, arguments))}"
        assert done.returncode == exit_code, f"{shown}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def trust(self, other: Host, ckpt: Ckpt) -> None:
        """Restore what the other host has signed, from now on."""
        self.ckpt(ckpt, "trust", "add", other.ckpt(ckpt, "trust", "show")["key"])

    def clock_ns(self, clock: int) -> int:
        """What a clock of the host reads: time.CLOCK_MONOTONIC or time.CLOCK_BOOTTIME."""
        program = f"import time; print(time.clock_gettime_ns({clock}))"
        done = self.run("python3", "-I", "-S", "-c", program)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def _make_places(self, state_bytes: int) -> None:
        self.must_run("mkdir", "-p", STATE, STORE)
        for place in (STATE, STORE):
            if place == STATE and state_bytes:
                self.must_run("mount", "-t", "tmpfs", "-o", f"size={state_bytes},mode=700", "tmpfs", place)
            else:
                on_disk = self._folder / f"{place.name}-{self.name}"
                on_disk.mkdir(mode=0o700)
                self.must_run("mount", "--bind", on_disk, place)

    @staticmethod
    def _joined(cgroup: Cgroup, *command: str) -> list[str]:
        """The command, started in this cgroup."""
        return ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
