"""Tell how far a use case has come, without the use case knowing: ports announce when they are called.

Rules: a spinner only on a terminal, and only after half a second; with -v a line a phase instead. All of it
on stderr.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from ckpt.cli.output import Output

PATIENCE_S: Final = 0.5

Port = TypeVar("Port")
Announce = Callable[[str], None]


def announced(port: Port, phases: Mapping[str, str], announce: Announce) -> Port:
    """The port, announcing the phase of each method that `phases` names before it is called."""
    return cast("Port", _Announcing(port, phases, announce))


@contextmanager
def telling(output: Output) -> Iterator[Announce]:
    """A function to announce phases with, while the context lasts."""
    if output.verbose:
        yield _lines(output)
    elif sys.stderr.isatty() and not output.quiet:
        spinner = _Spinner()
        try:
            yield spinner.announce
        finally:
            spinner.end()
    else:
        yield lambda _phase: None


class _Announcing:
    """Passes everything on to the port behind it."""

    def __init__(self, port: object, phases: Mapping[str, str], announce: Announce) -> None:
        self._port = port
        self._phases = phases
        self._announce = announce

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._port, name)
        phase = self._phases.get(name)
        if phase is None:
            return attribute

        def call(*arguments: Any, **named: Any) -> Any:
            self._announce(phase)
            return attribute(*arguments, **named)

        return call


def _lines(output: Output) -> Announce:
    began = time.monotonic()
    last = ""

    def announce(phase: str) -> None:
        nonlocal last
        if phase != last:
            output.note(f"{(time.monotonic() - began) * 1000:8.1f} ms  {phase}")
        last = phase

    return announce


class _Spinner:
    """The phase on the terminal's last line, once PATIENCE_S are over."""

    def __init__(self) -> None:
        self._phase = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True, name="progress")
        self._thread.start()

    def announce(self, phase: str) -> None:
        """Show this phase from now on."""
        self._phase = phase

    def end(self) -> None:
        """Take it off the terminal."""
        self._over.set()
        self._thread.join()

    def _show(self) -> None:
        if self._over.wait(PATIENCE_S):
            return
        from rich.console import Console  # noqa: PLC0415 - 70 ms, only where something is shown

        with Console(stderr=True).status(self._phase) as status:
            while not self._over.wait(0.1):
                status.update(self._phase)
