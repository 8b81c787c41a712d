"""`ckpt completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ckpt.cli.call import Call, make_command

SHELLS = ("bash", "zsh", "fish")


@make_command("completion", example="ckpt completion bash > /etc/bash_completion.d/ckpt")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes ckpt's commands, options, jobs and checkpoints in SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "ckpt", "_CKPT_COMPLETE").source()
    call = context.find_object(Call)
    assert call is not None
    call.output.result({"shell": shell, "script": script}, script)
