"""The program: reads the call, runs one command, tells how it ended.

Rule: nothing leaves this module but an exit code; see failures.py for what is printed before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from ckpt.cli.failures import tell
from ckpt.cli.group import ckpt
from ckpt.cli.interruption import interruptible

READER_GONE: Final = 141
"""What a shell gives for a program that was ended by SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ckpt with these arguments, or the process's; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    context = None
    try:
        with interruptible(f"ckpt {words[0]}" if words else "ckpt"):
            context = ckpt.main(args=words, prog_name="ckpt", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # Whatever Python still wants to flush at its end has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        return tell(error, json=_asks_for_json(words))
    return context if isinstance(context, int) else 0


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether --json stands before or after the command, also where the call could not be parsed."""
    ours = words[: words.index("--")] if "--" in words else words
    return "--json" in ours
