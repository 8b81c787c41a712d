"""How an error is told, and the exit code that it gives.

Rules: for people one sentence, then the hint, then CRIU's own lines; for programs one JSON document on
stdout. An error that is not in the tree of ckpt.errors is a bug: a traceback, and exit code 70.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any, Final

import click

from ckpt.cli.output import on_one_line, paint, print_json
from ckpt.errors import CkptError, CriuError, Incompatible, Usage

BUG: Final = 70


def tell(error: BaseException, *, json: bool) -> int:
    """Print the error; gives the exit code."""
    if isinstance(error, click.UsageError):
        error = _usage_of(error)
    elif isinstance(error, click.ClickException):
        error = Usage(problem=error.format_message())
    if not isinstance(error, CkptError):
        return _tell_bug(error, json=json)
    if json:
        print_json({"error": document_of(error)})
    else:
        click.echo(text_of(error), err=True)
    return error.exit_code


def document_of(error: CkptError) -> dict[str, Any]:
    """The error as the value of "error" in JSON."""
    document: dict[str, Any] = {
        "slug": error.slug,
        "message": error.message,
        "hint": error.advice,
        "exit_code": error.exit_code,
    }
    match error:
        case CriuError(log_lines=lines, log_path=path):
            document |= {"log_lines": list(lines), "log_path": path}
        case Incompatible(reasons=reasons):
            document |= {"reasons": list(reasons)}
        case _:
            pass
    return document


def text_of(error: CkptError) -> str:
    """The error for people, without the final newline; what checkpoints and other hosts say in it cannot steer a terminal."""
    lines = [f"{paint('ckpt:', 'red', sys.stderr)} {on_one_line(error.message)}"]
    if error.advice:
        lines.append(on_one_line(error.advice))
    if isinstance(error, CriuError):
        if error.log_lines:
            lines.append("CRIU's log says:")
        lines += [f"    {on_one_line(line)}" for line in error.log_lines]
        if error.log_path:
            lines.append(f"The whole log: {on_one_line(error.log_path)}")
    return "\n".join(lines)


def _usage_of(error: click.UsageError) -> Usage:
    command = error.ctx.command_path if error.ctx is not None else "ckpt"
    problem = error.format_message()
    return Usage(problem=problem, remedy=f"See '{command} --help'.")


def _tell_bug(error: BaseException, *, json: bool) -> int:
    click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    message = f"A bug in ckpt: {type(error).__name__}: {error}"
    hint = "Please report it with the traceback. 'ckpt recover' mends what it may have left."
    if json:
        print_json({"error": {"slug": "bug", "message": message, "hint": hint, "exit_code": BUG}})
    else:
        click.echo(f"{paint('ckpt:', 'red', sys.stderr)} {message}\n{hint}", err=True)
    return BUG
