"""Groups of commands, each command in a module that is imported when it is called.

A command is either flat (`ckpt dump`) or in a group (`ckpt trust add`); groups may stand in groups. How to add:

* a flat command: a module with a `command` made by call.make_command(), and a line in group.COMMANDS.
* a group: a module with a table of its own and `command = make_group(…)`, and a line in group.COMMANDS for it:

      COMMANDS: Final = {
          "list": ("ckpt.cli.trust:list_command", "List the keys that this host trusts."),
          …
      }
      command = make_group("trust", table=COMMANDS, example="ckpt trust list", help="Say whose …")

  Its commands are made by make_command("list", example="ckpt trust list"): named by their last word, with an
  example that is a whole command line.

A table's values are the place, "MODULE" (whose attribute is `command`) or "MODULE:ATTRIBUTE", and the line in the
help of the group. Man pages, completion and the tests of the help follow the tables by themselves: a group has
one man page, with a section for each of its commands. The options of ckpt itself (--json, --store …) count
wherever they stand: before, between and after the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from ckpt.cli.call import options_of_ckpt

Table = Mapping[str, tuple[str, str]]
"""From a command's name to its place and its line in the help."""


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and knows its line in the help before."""

    def __init__(self, *arguments: Any, table: Table, example: str, **attributes: Any) -> None:
        """Take click's own arguments, the commands, and the example: whole command lines."""
        super().__init__(*arguments, **attributes)
        self.no_args_is_help = False
        self.table = table
        self.example = example

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """The names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """The command, imported now; None if there is none of this name."""
        return self.command_named(cmd_name) if cmd_name in self.table else None

    def command_named(self, name: str) -> click.Command:
        """The command of a name that the table has, imported now."""
        module, _, attribute = self.table[name][0].partition(":")
        found = getattr(import_module(module), attribute or "command")
        assert isinstance(found, click.Command)
        return found

    def below(self) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        """Every command below with its words, groups before what is in them: ("trust",), ("trust", "list") …"""
        for name in self.table:
            found = self.command_named(name)
            yield (name,), found
            if isinstance(found, LazyGroup):
                yield from (((name, *path), deeper) for path, deeper in found.below())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the example."""
        with formatter.section("Example"):
            formatter.write("".join(f"  {line}\n" for line in self.example.splitlines()))


class Group(LazyGroup):
    """A group below ckpt: it takes the options of ckpt itself, as its commands do."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        """Take what LazyGroup takes."""
        super().__init__(*arguments, **attributes)
        self.params += options_of_ckpt()


def make_group(name: str, *, table: Table, example: str, help: str) -> Group:  # noqa: A002 - click's word
    """The group of this name with the commands of the table."""
    return Group(name, table=table, example=example, help=help)
