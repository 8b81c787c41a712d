"""`ckpt` itself: the options before the command, and the table of the commands.

Rule: `ckpt --help` and `ckpt --version` import nothing but click and this package's small modules. How to add a
command, or a group of them: lazy.py.
"""

from __future__ import annotations

from typing import Any, Final

import click
from click.core import ParameterSource

from ckpt import VERSION
from ckpt.cli.call import DEFAULT_STORE, Call, Verbosity
from ckpt.cli.lazy import LazyGroup

COMMANDS: Final = {
    "run": ("ckpt.cli.run", "Start a command as a job."),
    "ps": ("ckpt.cli.ps", "List the jobs of this host."),
    "stop": ("ckpt.cli.stop", "End a job: SIGTERM, then SIGKILL."),
    "wait": ("ckpt.cli.wait", "Wait until a job ends, and exit with its code."),
    "logs": ("ckpt.cli.logs", "Print what a job wrote to its standard output and error."),
    "rm-job": ("ckpt.cli.rm_job", "Forget a job that has ended; its checkpoints stay."),
    "check": ("ckpt.cli.check", "Say beforehand what would make a dump or a restore fail."),
    "dump": ("ckpt.cli.dump", "Take a checkpoint of a process tree, a cgroup or a job."),
    "restore": ("ckpt.cli.restore", "Bring a checkpoint back to life."),
    "suspend": ("ckpt.cli.suspend", "Checkpoint jobs and end them, before a reboot."),
    "resume": ("ckpt.cli.resume", "Bring back what was suspended."),
    "migrate": ("ckpt.cli.migrate", "Move a workload that runs to another host."),
    "list": ("ckpt.cli.list", "List the checkpoints in the store."),
    "show": ("ckpt.cli.show", "Show what is in a checkpoint."),
    "memory": ("ckpt.cli.memory", "Look into the memory of a checkpoint."),
    "diff": ("ckpt.cli.diff", "Show what changed between two checkpoints."),
    "report": ("ckpt.cli.report", "Draw checkpoints as a page of HTML."),
    "verify": ("ckpt.cli.verify", "Read checkpoints whole and check every byte."),
    "tag": ("ckpt.cli.tag", "Give a checkpoint a name of its own."),
    "rm": ("ckpt.cli.rm", "Remove checkpoints and free their space."),
    "prune": ("ckpt.cli.prune", "Remove the checkpoints that a retention policy does not keep."),
    "push": ("ckpt.cli.push", "Copy a checkpoint into another store."),
    "pull": ("ckpt.cli.pull", "Copy a checkpoint of another store into this one."),
    "export": ("ckpt.cli.export", "Write a checkpoint to a file, for another store or another tool."),
    "import": ("ckpt.cli.import_", "Take an archive, or images of CRIU, into the store."),
    "sign": ("ckpt.cli.sign", "Sign a checkpoint with this host's key."),
    "trust": ("ckpt.cli.trust", "Say whose checkpoints this host restores."),
    "store": ("ckpt.cli.store", "Make a store, see what it takes, change its settings and its key."),
    "guard": ("ckpt.cli.guard", "Answer memory pressure before the OOM killer does."),
    "guard-hook": ("ckpt.cli.guard_hook", "Checkpoint what another OOM killer is about to kill."),
    "doctor": ("ckpt.cli.doctor", "Say what this host can do, and what is missing."),
    "host": ("ckpt.cli.host", "Make another host ready for workloads of this one."),
    "recover": ("ckpt.cli.recover", "After a crash: thaw, and undo what was under way."),
    "agent": ("ckpt.cli.agent", "Answer another host's ckpt; started over SSH, not for people."),
    "supervise": ("ckpt.cli.supervise", "Take a job's checkpoints in the background; not for people."),
    "completion": ("ckpt.cli.completion", "Print the shell's completion script."),
}
"""From a command's name to its module, which has the command as `command`, and to its line in the help."""

_EXAMPLE: Final = "ckpt run --detach --name web -- ./server\nckpt dump web --stop\nckpt restore web"


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    example=_EXAMPLE,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION, prog_name="ckpt", message="%(prog)s %(version)s")
@click.option(
    "--store",
    metavar="PATH|URL",
    envvar="CKPT_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    show_envvar=True,
    help="Where checkpoints are kept. A local store is made on first use.",
)
@click.option(
    "--key-file",
    metavar="PATH",
    envvar="CKPT_KEY_FILE",
    show_envvar=True,
    help="The file with the secret that opens an encrypted store.",
)
@click.option(
    "--key-command",
    metavar="COMMAND",
    envvar="CKPT_KEY_COMMAND",
    show_envvar=True,
    help="A command for the shell that prints that secret.",
)
@click.option("--json", is_flag=True, help="Print one JSON document.")
@click.option("--json-progress", is_flag=True, help="Tell each phase on stderr, as one JSON document a line.")
@click.option("-v", "--verbose", is_flag=True, help="Tell each phase on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="No warnings, no progress.")
@click.pass_context
def ckpt(context: click.Context, /, store: str, **flags: Any) -> None:
    """Checkpoint and restore live Linux workloads, with their clocks and files kept.

    These options may also stand after the command.
    """
    if flags["verbose"] and flags["quiet"]:
        raise click.UsageError("-v and -q exclude each other.", ctx=context)
    chosen = (
        Verbosity.VERBOSE if flags["verbose"] else Verbosity.QUIET if flags["quiet"] else Verbosity.NORMAL
    )
    call = context.ensure_object(Call)
    call.store, call.json, call.verbosity = store, flags["json"], chosen
    call.json_progress = flags["json_progress"]
    call.key_file, call.key_command = flags["key_file"], flags["key_command"]
    for name in ("key_file", "key_command"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            call.take_key(name, flags[name])
