"""One call of ckpt: what the options before the command say, and the class of every command.

Rules: --json, -v, -q, --store and the key's source count before and after the command. Every command has an
example; the class demands it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import click

from ckpt.cli.output import Output

DEFAULT_STORE: Final = "/var/lib/ckpt/store"

Sections = Mapping[str, Sequence[str]]
"""From the title of a section of the help to the names of the parameters in it."""

_OTHER_OPTIONS: Final = "Options"


class Verbosity(IntEnum):
    """How much is told beside the result."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


@dataclass(slots=True, kw_only=True)
class Call:
    """The options of ckpt itself; each may still be set by the one after the command."""

    store: str = DEFAULT_STORE
    json: bool = False
    json_progress: bool = False
    verbosity: Verbosity = Verbosity.NORMAL
    key_file: str | None = None
    key_command: str | None = None
    _key_option: str | None = None

    def take_key(self, option: str, value: str) -> None:
        """Take the source of the key from the option "key_file" or "key_command"; the environment's is dropped.

        Raises:
            UsageError: the other one was given as an option, too.
        """
        if self._key_option not in {None, option}:
            raise usage("--key-file and --key-command exclude each other.")
        self._key_option = option
        self.key_file = value if option == "key_file" else None
        self.key_command = value if option == "key_command" else None

    @property
    def output(self) -> Output:
        """Where this call's result, warnings and notes go."""
        return Output(
            json=self.json,
            json_progress=self.json_progress,
            quiet=self.verbosity is Verbosity.QUIET,
            verbose=self.verbosity is Verbosity.VERBOSE,
        )


class Command(click.Command):
    """A command with --json, and an example at the end of its help."""

    def __init__(
        self, *arguments: Any, example: str, sections: Sections | None = None, **attributes: Any
    ) -> None:
        """Take click's own arguments, the example, a whole command line, and the sections of its options."""
        super().__init__(*arguments, **attributes)
        self.example = example
        self.sections = sections or {}
        self.params += options_of_ckpt()

    def options_by_section(self) -> dict[str, list[click.Option]]:
        """The options that help shows, in their order; under "Options" those that are in no section of their own."""
        by_name = {name: section for section, names in self.sections.items() for name in names}
        found: dict[str, list[click.Option]] = {section: [] for section in self.sections}
        for option in self.params:
            if isinstance(option, click.Option) and not option.hidden:
                found.setdefault(by_name.get(str(option.name), _OTHER_OPTIONS), []).append(option)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        found = self.options_by_section()
        if (help_option := self.get_help_option(ctx)) is not None:
            found.setdefault(_OTHER_OPTIONS, []).append(help_option)
        for section, options in found.items():
            with formatter.section(section):
                formatter.write_dl([line for option in options if (line := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the example."""
        with formatter.section("Example"):
            formatter.write(f"{'':>{formatter.current_indent}}{self.example}\n")


def make_command(
    name: str, *, example: str, sections: Sections | None = None, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make the function a command of this name; `sections` of its options come before the rest of them."""
    return click.command(name, cls=Command, example=example, sections=sections, **attributes)


def options_of_ckpt() -> list[click.Parameter]:
    """What may stand before the command may stand after it; but for --json, the help tells it there."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_json,
            # Before anything that may fail, so that its failure is told in JSON too.
            is_eager=True,
            help="Print one JSON document.",
        ),
        click.Option(
            ["--json-progress"],
            is_flag=True,
            expose_value=False,
            hidden=True,
            callback=_set_json_progress,
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, hidden=True, callback=_set_verbose
        ),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, hidden=True, callback=_set_quiet),
        click.Option(["--store"], expose_value=False, hidden=True, callback=_set_store),
        click.Option(["--key-file"], expose_value=False, hidden=True, callback=_set_key),
        click.Option(["--key-command"], expose_value=False, hidden=True, callback=_set_key),
    ]


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    call = context.find_object(Call)
    if value and call is not None:
        call.json = True


def _set_json_progress(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    call = context.find_object(Call)
    if value and call is not None:
        call.json_progress = True


def _set_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    call = context.find_object(Call)
    if value and call is not None:
        call.verbosity = Verbosity.VERBOSE


def _set_quiet(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    call = context.find_object(Call)
    if value and call is not None:
        if call.verbosity is Verbosity.VERBOSE:
            raise usage("-v and -q exclude each other.")
        call.verbosity = Verbosity.QUIET


def _set_store(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    call = context.find_object(Call)
    if value is not None and call is not None:
        call.store = value


def _set_key(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    call = context.find_object(Call)
    if value is not None and call is not None:
        call.take_key(str(parameter.name), value)


def usage(problem: str) -> click.UsageError:
    """An error of the call that click's own checks cannot see; it names the command's help."""
    return click.UsageError(problem, ctx=click.get_current_context(silent=True))
