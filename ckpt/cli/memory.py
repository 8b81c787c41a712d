"""`ckpt memory`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.parameters import ref_argument
from ckpt.errors import Usage

if TYPE_CHECKING:
    from ckpt.flow.memory import StoredMemory
    from ckpt.flow.searching import Pattern

_LIMIT: Final = 1000
_ADDRESSES_MAX: Final = 1 << 64
_NUMBER: Final = r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}"
_RANGE: Final = re.compile(rf"({_NUMBER})([-+])({_NUMBER})", re.ASCII)


def address_range(text: str) -> tuple[int, int]:
    """The addresses that "A-B" or "A+LENGTH" means: the first, and the one after the last.

    Raises:
        BadParameter: it means none, or an empty range.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is no range: write 0x7f0000001000-0x7f0000002000 or 0x7f0000001000+256."
        )
    start, second = (int(number, 16 if number[:2].lower() == "0x" else 10) for number in found.group(1, 3))
    end = second if found[2] == "-" else start + second
    if not start < end <= _ADDRESSES_MAX:
        raise click.BadParameter(f"{text!r} has no address: the end must be above the start, and below 2^64.")
    return start, end


@make_command("memory", example="ckpt memory web@latest --search 'session='")
@ref_argument
@click.option(
    "--pid", type=click.IntRange(min=1), metavar="N", help="Only this process, as the host called it."
)
@click.option(
    "--range",
    "addresses",
    type=address_range,
    metavar="A-B|A+LENGTH",
    help="Show these addresses; numbers are decimal, or hexadecimal with 0x.",
)
@click.option("--raw", is_flag=True, help="With --range: the bytes themselves, on the standard output.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="With --range: the bytes themselves, into FILE.",
)
@click.option("--search", "wanted", metavar="PATTERN", help="Find this text.")
@click.option("--hex", "is_hex", is_flag=True, help="With --search: PATTERN is bytes, as in 'de ad be ef'.")
@click.option("--regex", is_flag=True, help="With --search: PATTERN is a regular expression over bytes.")
@click.option("--strings", is_flag=True, help="Print all text with its addresses.")
@click.option(
    "--min",
    "characters_min",
    type=click.IntRange(1, 4096),
    default=4,
    show_default=True,
    metavar="N",
    help="With --strings: the shortest text.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Stop after so many. Without it --search stops after {_LIMIT}, and so does --strings with --json.",
)
@click.pass_obj
def command(call: Call, /, ref: str, **options: Any) -> int:
    """Look into the memory of the checkpoint REF, without restoring it.

    Without options: what each process had mapped, and how much of it is stored.
    """
    from ckpt.cli import memory_text  # noqa: PLC0415 - with it comes all that reads images

    pid, addresses, file = options["pid"], options["addresses"], options["file"]
    pattern = _pattern(options)
    memory = _open(call, ref)
    tasks = memory.tasks if pid is None else (memory.task(pid),)
    if addresses is not None:
        if options["raw"] or file is not None:
            memory_text.write_raw(call, memory, memory.task(pid), addresses, file)
        else:
            memory_text.show_range(call, memory, memory.task(pid), addresses)
    elif pattern is not None:
        limit = options["limit"]
        if limit is None and (call.json or not options["strings"]):
            limit = _LIMIT
        memory_text.show_matches(call, memory, tasks, pattern, limit=limit, strings=options["strings"])
    else:
        memory_text.show_areas(call, memory, tasks)
    return 0


def _open(call: Call, ref: str) -> StoredMemory:
    from ckpt.flow.memory import StoredMemory  # noqa: PLC0415
    from ckpt.host.memory_layouts import ImageLayouts  # noqa: PLC0415

    store = wiring.open_store(call.store, create=False)
    return StoredMemory(store, ImageLayouts(), store.resolve(ref))


def _pattern(options: dict[str, Any]) -> Pattern | None:
    """What is looked for; None where nothing is.

    Raises:
        UsageError: options that do not go together.
        Usage: the pattern cannot be read.
    """
    from ckpt.flow.searching import expression, literal, text  # noqa: PLC0415

    wanted, addresses = options["wanted"], options["addresses"]
    if sum((addresses is not None, wanted is not None, options["strings"])) > 1:
        raise usage("--range, --search and --strings exclude each other.")
    if (options["raw"] or options["file"] is not None) and addresses is None:
        raise usage("--raw and -o need --range.")
    if (options["is_hex"] or options["regex"]) and wanted is None:
        raise usage("--hex and --regex need --search.")
    if options["is_hex"] and options["regex"]:
        raise usage("--hex and --regex exclude each other.")
    if options["strings"]:
        return text(options["characters_min"])
    if wanted is None:
        return None
    if options["regex"]:
        try:
            return expression(re.compile(os.fsencode(wanted)))
        except re.error as error:
            raise Usage(
                problem=f"'{wanted}' is no regular expression: {error}.",
                remedy="Write it as in Python; leave out --regex to find the text as it is.",
            ) from error
    try:
        sought = bytes.fromhex(wanted) if options["is_hex"] else os.fsencode(wanted)
    except ValueError as error:
        raise Usage(
            problem=f"'{wanted}' is not bytes in hexadecimal.", remedy="Write them as in 'de ad be ef'."
        ) from error
    if not sought:
        raise usage("There is nothing to search: PATTERN is empty.")
    return literal(sought)
