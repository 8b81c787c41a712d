"""What goes to stdout and stderr.

Rules: stdout has the result and nothing else: one JSON document, or text for people. Everything else is on
stderr. Colours are for terminals alone, and NO_COLOR turns them off (no-color.org).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

import click

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a call's words go."""

    json: bool
    quiet: bool = False
    verbose: bool = False
    json_progress: bool = False

    def result(self, document: Mapping[str, Any], text: str, *, brief: str | None = None) -> None:
        """Print the result: the document, or for people the text; with -q the brief form, if there is one."""
        if self.json:
            print_json(document)
        else:
            print_text(brief if self.quiet and brief is not None else text)

    def warn(self, sentence: str) -> None:
        """Tell on stderr what the user should know, unless -q."""
        if self.quiet:
            return
        if self.json_progress:
            print_event({"event": "warning", "message": sentence})
        else:
            click.echo(f"{paint('ckpt: warning:', 'yellow', sys.stderr)} {on_one_line(sentence)}", err=True)

    def note(self, sentence: str) -> None:
        """Tell on stderr what only -v asks for."""
        if not self.verbose:
            return
        if self.json_progress:
            print_event({"event": "note", "message": sentence})
        else:
            click.echo(f"ckpt: {on_one_line(sentence)}", err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the document on stdout. What is not UTF-8 (a path) is written with escapes, so it can be read."""
    click.echo(json.dumps(document, indent=2 if wants_colour(sys.stdout) else None))


def print_event(document: Mapping[str, Any]) -> None:
    """Print the document on stderr, as one line, at once."""
    click.echo(json.dumps(document), err=True)


def print_text(text: str) -> None:
    """Print the text on stdout; paths that are not UTF-8 keep their bytes."""
    if text:
        click.echo(
            text.encode("utf-8", "surrogateescape") if _has_surrogates(text) else text,
            color=wants_colour(sys.stdout),
        )


def wants_colour(stream: TextIO) -> bool:
    """Whether the stream is a terminal that shows colours, and the user wants them."""
    return not os.environ.get("NO_COLOR") and shows_bars(stream)


def shows_bars(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which a line can be drawn anew."""
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """The text in the colour, if the stream shows colours."""
    return click.style(text, fg=colour, bold=True) if wants_colour(stream) else text


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: as wide as it must be, two blanks between columns, numbers as they come."""
    table = [tuple(header), *(tuple(map(on_one_line, row)) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def on_one_line(text: str) -> str:
    """The text with every control character escaped: names and command lines may hold anything."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
