"""The program: reads the call, runs one command, tells how it ended.

Rule: nothing leaves this module but an exit code; see failures.py for what is printed before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from ckpt.cli.call import Call
from ckpt.cli.failures import tell
from ckpt.cli.group import ckpt
from ckpt.cli.interruption import interruptible

READER_GONE: Final = 141
"""What a shell gives for a program that was ended by SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ckpt with these arguments, or the process's; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    call = Call()
    code = None
    try:
        with interruptible(f"ckpt {words[0]}" if words else "ckpt"):
            code = ckpt.main(args=words, prog_name="ckpt", standalone_mode=False, obj=call)
    except click.UsageError as error:
        # The parser may have stopped before it came to --json.
        return tell(error, json=call.json or _asks_for_json(words))
    except BrokenPipeError:
        # Whatever Python still wants to flush at its end has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        return tell(error, json=call.json)
    return code if isinstance(code, int) else 0


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether --json stands anywhere before what follows "--"."""
    ours = words[: words.index("--")] if "--" in words else words
    return "--json" in ours
