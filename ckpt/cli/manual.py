"""The man pages, made from the commands themselves: one for ckpt, one for each command or group of commands.

Rule: the text depends on the commands alone, not on the terminal, the day, or the version of click.
Source: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import click

from ckpt.cli.call import Command
from ckpt.cli.group import COMMANDS, ckpt
from ckpt.cli.lazy import Group

EXIT_CODES: Final = (
    ("0", "done"),
    ("2", "wrong usage"),
    ("3", "finished, and problems were reported"),
    ("10-14", "this host: not root or refused 10, a command failed 11, freeze timeout 12, lacking 13, full 14"),
    ("20-24", "CRIU: the dump failed 21, the restore failed 22, it got stuck 23, it died 24"),
    ("30-32", "cannot be checkpointed 30, does not fit this host 31, files changed 32"),
    ("40-44", "the store: unusable or its key is wrong 40, not there 41, damaged 42, unknown format 43, untrusted 44"),
    ("50-55", "the other host: unreachable 51, host key 52, ckpt failed there 53, no common protocol 54, set-up failed 55"),
    ("60-63", "conflict: locked 61, wrong state 62, no such process, cgroup, job or trusted key 63"),
    ("65", "jobs that belong together could not be dumped or restored together"),
    ("70", "a bug in ckpt"),
    ("75", "ckpt run, ckpt wait: the job lives on in a checkpoint; run the same command again"),
    ("90", "undoing failed: run ckpt recover and look at the workload"),
    ("126-127", "ckpt run in the foreground: CMD cannot be executed 126, is not there 127"),
    ("130", "interrupted"),
)  # fmt: skip

ENVIRONMENT: Final = (
    ("CKPT_STORE", "the store, unless --store names one; default /var/lib/ckpt/store"),
    ("CKPT_STATE", "the directory of jobs, journal and staging area; default /var/lib/ckpt"),
    ("CKPT_KEYS", "the directory of this host's signing key and of its trust file; default /var/lib/ckpt/keys"),
    ("CKPT_KEY_FILE", "the file with the secret that opens an encrypted store, unless an option says where it is"),
    ("CKPT_KEY_COMMAND", "a command for the shell that prints that secret"),
    ("CKPT_CRIU", "the path of the criu to use; default /opt/ckpt/criu/bin/criu, then the first in PATH"),
    ("NO_COLOR", "if it is set to anything, no colours"),
)  # fmt: skip


_MORE_OPTIONS: Final = (".PP", "The options of", ".BR ckpt (1)", "may stand here, too.")


def pages() -> dict[str, str]:
    """From file name ("ckpt-dump.1") to troff source."""
    made = {"ckpt.1": _main_page()}
    for name, (_, line) in COMMANDS.items():
        command = ckpt.command_named(name)
        if isinstance(command, Group):
            made[f"ckpt-{name}.1"] = _group_page(name, line, command)
        else:
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
    return "\n".join(
        (
            *_head(name, line),
            ".SH SYNOPSIS",
            *_synopsis(f"ckpt {name}", command),
            ".SH DESCRIPTION",
            _paragraphs(command.help or ""),
            ".SH OPTIONS",
            *_options_by_section(command),
            *_MORE_OPTIONS,
            ".SH EXAMPLE",
            *_example(command.example),
            ".SH SEE ALSO",
            ".BR ckpt (1)",
            "",
        )
    )


def _group_page(name: str, line: str, group: Group) -> str:
    """The group, then each of its commands: what would otherwise be pages of a few lines."""
    commands = [
        (" ".join(("ckpt", name, *path)), found)
        for path, found in group.below()
        if isinstance(found, Command)
    ]
    everywhere = _options(group)
    synopses = [text for called, command in commands for text in (*_synopsis(called, command), ".br")]
    sections = [
        text
        for called, command in commands
        for text in (
            f".SS {_text(called)}",
            _paragraphs(command.help or ""),
            *(option for option in _options(command) if option not in everywhere),
            ".PP",
            "Example:",
            ".PP",
            *_example(command.example),
        )
    ]
    return "\n".join(
        (
            *_head(name, line),
            ".SH SYNOPSIS",
            *synopses[:-1],
            ".SH DESCRIPTION",
            _paragraphs(group.help or ""),
            ".SH COMMANDS",
            *sections,
            ".SH OPTIONS",
            *_options(group),
            *_MORE_OPTIONS,
            ".SH EXAMPLE",
            *_example(group.example),
            ".SH SEE ALSO",
            ".BR ckpt (1)",
            "",
        )
    )


def _head(name: str, line: str) -> tuple[str, str, str]:
    said = line[0].lower() + line[1:].rstrip(".")
    return _title(f"ckpt-{name}"), ".SH NAME", rf"ckpt\-{_text(name)} \- {_text(said)}"


def _synopsis(called: str, command: click.Command) -> tuple[str, str]:
    arguments = [
        parameter.metavar or (parameter.name or "").upper()
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    return rf".B {_text(called)}", _text(" ".join(["[OPTIONS]", *arguments]))


def _example(example: str) -> tuple[str, str, str]:
    return ".nf", _text(example), ".fi"


def _title(name: str) -> str:
    return f'.TH {name.upper()} 1 "" ckpt "ckpt manual"'


def _options(command: click.Command) -> list[str]:
    return [
        _item(_spelling(parameter), _meaning(parameter))
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    ]


def _options_by_section(command: Command) -> list[str]:
    found = command.options_by_section()
    return [
        text
        for section, options in found.items()
        for text in (
            *([f".SS {_text(section)}"] if len(found) > 1 else []),
            *(_item(_spelling(option), _meaning(option)) for option in options),
        )
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
