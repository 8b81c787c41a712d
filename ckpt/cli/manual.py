"""The man pages, made from the commands themselves: one for ckpt, one for each command.

Rule: the text depends on the commands alone, not on the terminal, the day, or the version of click.
Source: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import click

from ckpt.cli.call import Command
from ckpt.cli.group import COMMANDS, ckpt

EXIT_CODES: Final = (
    ("0", "done"),
    ("2", "wrong usage"),
    ("3", "finished, and problems were reported"),
    ("10-14", "this host: not root or refused 10, a command failed 11, freeze timeout 12, lacking 13, full 14"),
    ("20-24", "CRIU: the dump failed 21, the restore failed 22, it got stuck 23, it died 24"),
    ("30-32", "cannot be checkpointed 30, does not fit this host 31, files changed 32"),
    ("40-43", "the store: unusable 40, not there 41, damaged 42, unknown format 43"),
    ("60-63", "conflict: locked 61, wrong state 62, no such process, cgroup or job 63"),
    ("70", "a bug in ckpt"),
    ("90", "undoing failed: run ckpt recover and look at the workload"),
    ("130", "interrupted"),
)  # fmt: skip

ENVIRONMENT: Final = (
    ("CKPT_STORE", "the store, unless --store names one; default /var/lib/ckpt/store"),
    ("CKPT_STATE", "the directory of jobs, journal and staging area; default /var/lib/ckpt"),
    ("CKPT_CRIU", "the path of the criu to use; default /opt/ckpt/criu/bin/criu, then the first in PATH"),
    ("NO_COLOR", "if it is set to anything, no colours"),
)


def pages() -> dict[str, str]:
    """From file name ("ckpt-dump.1") to troff source."""
    context = click.Context(ckpt, info_name="ckpt")
    made = {"ckpt.1": _main_page()}
    for name, (_, line) in COMMANDS.items():
        command = ckpt.get_command(context, name)
        assert isinstance(command, Command)
        made[f"ckpt-{name}.1"] = _command_page(name, line, command)
    return made


def _main_page() -> str:
    commands = [(f"ckpt-{name}(1)", line) for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        (
            _title("ckpt"),
            ".SH NAME",
            r"ckpt \- checkpoint and restore live Linux workloads",
            ".SH SYNOPSIS",
            r".B ckpt",
            _text("[--store PATH|URL] [--json] [-v|-q] COMMAND …"),
            ".SH DESCRIPTION",
            _paragraphs(ckpt.help or ""),
            ".SH OPTIONS",
            *_options(ckpt),
            ".SH COMMANDS",
            *(_item(name, line) for name, line in commands),
            ".SH EXIT STATUS",
            *(_item(code, meaning) for code, meaning in EXIT_CODES),
            ".SH ENVIRONMENT",
            *(_item(name, meaning) for name, meaning in ENVIRONMENT),
            "",
        )
    )


def _command_page(name: str, line: str, command: Command) -> str:
    arguments = [
        parameter.metavar or (parameter.name or "").upper()
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    return "\n".join(
        (
            _title(f"ckpt-{name}"),
            ".SH NAME",
            rf"ckpt\-{_text(name)} \- {_text(line[0].lower() + line[1:].rstrip('.'))}",
            ".SH SYNOPSIS",
            rf".B ckpt {_text(name)}",
            _text(" ".join(["[OPTIONS]", *arguments])),
            ".SH DESCRIPTION",
            _paragraphs(command.help or ""),
            ".SH OPTIONS",
            *_options(command),
            ".SH EXAMPLE",
            ".nf",
            _text(command.example),
            ".fi",
            ".SH SEE ALSO",
            ".BR ckpt (1)",
            "",
        )
    )


def _title(name: str) -> str:
    return f'.TH {name.upper()} 1 "" ckpt "ckpt manual"'


def _options(command: click.Command) -> list[str]:
    return [
        _item(_spelling(parameter), _meaning(parameter))
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]


def _spelling(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    choices: Any = getattr(option.type, "choices", None)
    return f"{names} {option.metavar or ('|'.join(choices) if choices else 'VALUE')}"


def _meaning(option: click.Option) -> str:
    shown = f" (default: {option.default})" if option.show_default else ""
    return f"{option.help or ''}{shown}"


def _item(term: str, meaning: str) -> str:
    return f".TP\n.B {_text(term)}\n{_text(meaning)}"


def _paragraphs(help_text: str) -> str:
    """The help's paragraphs; one that begins with a backspace keeps its lines (click's own rule)."""
    lines: list[str] = []
    for number, paragraph in enumerate(inspect.cleandoc(help_text).split("\n\n")):
        if number:
            lines.append(".PP")
        if paragraph.startswith("\b"):
            lines += [".nf", ".ft CW", _text(paragraph.removeprefix("\b").strip("\n")), ".ft R", ".fi"]
        else:
            lines.append(_text(paragraph))
    return "\n".join(lines)


def _text(text: str) -> str:
    """The text with what troff would take for its own escaped."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())
