"""`ckpt run`."""

from __future__ import annotations

import os
import re
import secrets

import click

from ckpt.cli import wiring
from ckpt.cli.attachment import attend, sources_of
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.network_option import network
from ckpt.cli.parameters import job_name, volume
from ckpt.model.network import Network
from ckpt.units import ByteCount, JobName


@make_command(
    "run",
    example="ckpt run --detach --name web -- ./server --port 8080",
    # What follows CMD belongs to CMD.
    context_settings={"allow_interspersed_args": False},
)
@click.option("--name", type=job_name, metavar="N", help="The job's name; default: CMD's and a suffix.")
@click.option("--detach", is_flag=True, help="Return at once; the job lives on.")
@click.option(
    "--log",
    default="",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Append the job's output to FILE instead of the job's own log.",
)
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    type=volume,
    metavar="PATH[:SIZE]",
    help="Give the job a file system of its own at PATH (default size: 1G). Its files are kept in every checkpoint, "
    "come back with it, and are the same files, by device and inode, on every host. Can be repeated.",
)
@click.option(
    "--net",
    "own_network",
    type=network,
    metavar="bridge=BR|macvlan=IF,address=ADDR/N[,gateway=ADDR][,mac=MAC][,mtu=N]",
    help="Give the job a network of its own: eth0 with this address, on a bridge or an interface of the host. Its "
    "connections come back with it, also on another host of the same network. address= and gateway= can be given for "
    "IPv4 and IPv6.",
)
@click.argument("words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def command(
    call: Call,
    *,
    name: str | None,
    detach: bool,
    log: str,
    volumes: tuple[tuple[str, ByteCount | None], ...],
    own_network: Network | None,
    words: tuple[str, ...],
) -> int:
    """Start CMD as a job: in its own cgroup and PID namespace, so that it can be restored anywhere.

    In the foreground its output is relayed, signals are forwarded, and the exit code is CMD's (128 + N if
    signal N ended it). The job's standard input is /dev/null.

    A volume lives until 'ckpt rm-job', whatever becomes of the processes: a job of the same name finds it again.
    """
    wiring.require_root("ckpt run")
    if call.json and not detach:
        raise usage("In the foreground stdout belongs to CMD: --json needs --detach.")
    job = JobName(name or default_name(words[0]))
    registry, record = wiring.start_job(
        job, words, log=log, apart=not detach, volumes=volumes, network=own_network
    )
    if not detach:
        code = attend(registry, job, sources_of(registry, job, from_now=False))
        wiring.tidy_job(job)
        return code
    call.output.result(
        {"job": job, "pid": record.root.pid, "cgroup": record.cgroup, "command_pid": record.command.pid},
        f"{job} runs: pid {record.root.pid}, cgroup {record.cgroup}",
        brief=job,
    )
    return 0


def default_name(program: str) -> str:
    """A name for a job that was given none: the program's, and a suffix that no other job has."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(program))[:40].lstrip("._-")
    return f"{base or 'job'}-{secrets.token_hex(3)}"
