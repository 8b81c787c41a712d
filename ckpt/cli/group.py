"""`ckpt` itself: the options before the command, and the commands, each in a module that is imported when used.

Rule: `ckpt --help` and `ckpt --version` import nothing but click and this package's small modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from ckpt.cli.call import DEFAULT_STORE, Call, Verbosity

COMMANDS: Final = {
    "run": ("ckpt.cli.run", "Start a command as a job."),
    "ps": ("ckpt.cli.ps", "List the jobs of this host."),
    "stop": ("ckpt.cli.stop", "End a job: SIGTERM, then SIGKILL."),
    "wait": ("ckpt.cli.wait", "Wait until a job ends, and exit with its code."),
    "logs": ("ckpt.cli.logs", "Print what a job wrote to its standard output and error."),
    "rm-job": ("ckpt.cli.rm_job", "Forget a job that has ended; its checkpoints stay."),
    "dump": ("ckpt.cli.dump", "Take a checkpoint of a process tree, a cgroup or a job."),
    "restore": ("ckpt.cli.restore", "Bring a checkpoint back to life."),
    "list": ("ckpt.cli.list", "List the checkpoints in the store."),
    "show": ("ckpt.cli.show", "Show what is in a checkpoint."),
    "verify": ("ckpt.cli.verify", "Read checkpoints whole and check every byte."),
    "tag": ("ckpt.cli.tag", "Give a checkpoint a name of its own."),
    "rm": ("ckpt.cli.rm", "Remove checkpoints and free their space."),
    "doctor": ("ckpt.cli.doctor", "Say what this host can do, and what is missing."),
    "recover": ("ckpt.cli.recover", "After a crash: thaw, and undo what was under way."),
    "completion": ("ckpt.cli.completion", "Print the shell's completion script."),
}
"""From a command's name to its module, which has the command as `command`, and to its line in the help."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and knows its line in the help before."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """The command, imported now; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        found = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the example."""
        with formatter.section("Example"):
            formatter.write(
                "  ckpt run --detach --name web -- ./server\n  ckpt dump web --stop\n  ckpt restore web\n"
            )


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ckpt", prog_name="ckpt", message="%(prog)s %(version)s")
@click.option(
    "--store",
    metavar="PATH|URL",
    envvar="CKPT_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    show_envvar=True,
    help="Where checkpoints are kept. A local store is made on first use.",
)
@click.option("--json", is_flag=True, help="Print one JSON document.")
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
