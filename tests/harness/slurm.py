"""Slurm on hosts of the lab: a controller and nodes, with a shared directory.

Each node has its own mounts, pids, clocks, cgroups and ckpt state, as a machine of its own would; munge vouches for
who asks. The cables between them are pulled out by `isolate`.

Rule: all of it lives in the hosts' cgroups, and ends with them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.cables import BRIDGE, Cable, add_bridge, in_network
from harness.cgroups import Cgroup
from harness.command import PROGRAM, Ckpt
from harness.lab import STATE, Host
from harness.processes import reap_in_background
from harness.subjects import installed
from harness.traces import Traces
from harness.waiting import await_condition

_CONTROLLER = "10.89.0.254"
_SOCKET = "/run/munge/munge.socket.2"

# KillWait, cred_expire (how soon a requeued job may start) and the rest are as short as Slurm takes them.
_CONFIGURATION = """
ClusterName=lab
SlurmctldHost=ctl({controller})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={socket},cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SchedulerType=sched/builtin
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
MessageTimeout=3
OverTimeLimit=0
SlurmdTimeout=5
ReturnToService=2
JobRequeue=1
NodeName=n[1-{nodes}] NodeAddr=10.89.0.[1-{nodes}] CPUs=1 RealMemory=100
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What Slurm says of a job; empty, and -1 restarts, while it does not answer."""

    state: str
    node: str
    exit_code: str
    restarts: int


class Slurm:
    """A cluster that is up; the test's traces take it down."""

    def __init__(self, traces: Traces, ckpt: Ckpt, *, nodes: int) -> None:
        """Bring it up.

        Args:
            traces: The test that it belongs to.
            ckpt: The command, and the mark of its jobs.
            nodes: How many; they are n1, n2 …
        """
        self.shared = traces.folder / "shared"
        self.shared.mkdir(mode=0o700)
        self._folder = traces.folder
        self._ckpt = ckpt
        self.controller = Host(traces, "ctl")
        names = [f"n{number}" for number in range(1, nodes + 1)]
        self.nodes = {
            name: Host(traces, name, monotonic_s=1000 * number, boottime_s=2000 * number, own_places=True)
            for number, name in enumerate(names, 1)
        }
        self._cables = self._connect()
        self._conf = self._configure()
        for host in (self.controller, *self.nodes.values()):
            self._serve_munge(host)
        self._daemon(self.controller, "slurmctld", "-D", "-f", self._conf)
        for name, node in self.nodes.items():
            self._daemon(node, "slurmd", "-D", "-N", name, "-f", self._conf)
        await_condition(
            lambda: (
                self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%N=%T").split()
                == [f"{name}=idle" for name in names]
            ),
            lambda: f"all nodes to be idle: {self.ask('sinfo', '-N')}\n{self.log()}",
            timeout_s=30,
        )

    def submit(self, script: Path, *words: object, options: tuple[str, ...] = (), **environ: str) -> str:
        """Submit a batch script with these arguments; returns the job's number."""
        done = self.controller.run(
            installed("sbatch"),
            *(
                "--parsable",
                f"--chdir={self._folder}",
                f"--output={self._folder}/slurm-%j.out",
                "--open-mode=append",
            ),
            *options,
            *(script, *words),
            environ=self._environ(**environ),
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def look(self, job: str) -> Shown:
        """Where the job stands."""
        shown = dict(
            word.partition("=")[::2] for word in self.ask("scontrol", "-o", "show", "job", job).split()
        )
        return Shown(
            state=shown.get("JobState", ""),
            node=shown.get("BatchHost", ""),
            exit_code=shown.get("ExitCode", ""),
            restarts=int(shown.get("Restarts", -1)),
        )

    def copies(self, job: str) -> list[str]:
        """On which nodes processes of the job's command run, as the kernel says."""
        return [
            name
            for name, node in self.nodes.items()
            if (pids := Cgroup(node.cgroup.path / f"ckpt/slurm-{job}")).exists() and pids.pids()
        ]

    def ask(self, program: str, *words: str) -> str:
        """What a command of Slurm prints; empty while the controller does not answer."""
        return self.controller.run(installed(program), *words, environ=self._environ()).stdout

    def order(self, program: str, *words: str) -> None:
        """Run a command of Slurm that must succeed."""
        self.controller.must_run(installed(program), *words, environ=self._environ())

    def isolate(self, node: str) -> None:
        """Pull out the node's cable: it runs on, and Slurm hears no more of it."""
        self._cables[node].down()

    def hide_shared(self, node: str) -> None:
        """Take the shared directory from the node: what is open stays so, but no name is found any more."""
        self.nodes[node].must_run("mount", "-t", "tmpfs", "tmpfs", self.shared)

    def output(self, job: str) -> str:
        """What the job's batch script printed, all runs of it."""
        path = self._folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def log(self) -> str:
        """The last lines of the daemons."""
        return "\n".join(
            f"{path.name}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
            for path in sorted([*self._folder.glob("slurm*.log"), *self._folder.glob("slurm*.err")])
        )

    def _connect(self) -> dict[str, Cable]:
        add_bridge(self.controller, f"{_CONTROLLER}/24")
        cables = {}
        for name, node in self.nodes.items():
            cables[name] = Cable((node, "eth0"), (self.controller, f"to-{name}"))
            cables[name].address(node, f"10.89.0.{name.removeprefix('n')}/24")
            in_network(self.controller, "link", "set", f"to-{name}", "master", BRIDGE)
        return cables

    def _configure(self) -> Path:
        (self._folder / "controller").mkdir(mode=0o700)
        text = _CONFIGURATION.format(
            folder=self._folder, socket=_SOCKET, controller=_CONTROLLER, nodes=len(self.nodes)
        )
        conf = self._folder / "slurm.conf"
        conf.write_text(text)
        # Without this it looks for systemd; nothing here is tracked by cgroups.
        conf.with_name("cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        conf.with_name("munge.key").write_bytes(os.urandom(128))
        conf.with_name("munge.key").chmod(0o600)
        return conf

    def _serve_munge(self, host: Host) -> None:
        host.must_run("mkdir", "-p", "-m", "755", "/run/munge")
        files = ("--pid-file=/run/munge/pid", "--log-file=/run/munge/log", "--seed-file=/run/munge/seed")
        # --force: it runs as root here.
        host.must_run(
            installed("munged"),
            "--force",
            f"--socket={_SOCKET}",
            f"--key-file={self._folder}/munge.key",
            *files,
        )

    def _daemon(self, host: Host, program: str, *words: object) -> None:
        output = f"{program}-{host.name}"
        reap_in_background(host.start(installed(program), *words, environ=self._environ(), output=output))

    def _environ(self, **more: str) -> dict[str, str]:
        places = {"SLURM_CONF": str(self._folder / "slurm.conf"), "CKPT_STATE": str(STATE)}
        return self._ckpt.environ({**places, "CKPT_PROGRAM": str(PROGRAM), **more})
