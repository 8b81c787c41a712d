"""Tell how far a use case has come, without the use case knowing: ports announce when they are called.

Rules: a bar only on a terminal, and only after half a second; with -v a line a phase instead; with --json-progress one
event a line (docs/progress.md). All of it on stderr. Where nobody watches, nothing is counted, and no thread is
started. A reader of stderr that is gone is no failure of what it was told of.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from ckpt.cli.output import Output, print_event, shows_bars
from ckpt.model.progress import Progress, Unwatched

PATIENCE_S: Final = 0.5
EVENTS_APART_S: Final = 0.1

Port = TypeVar("Port")
Announce = Callable[[str], None]


class Teller(Progress, Protocol):
    """Is told of phases and of bytes, and tells the user."""

    def __call__(self, phase: str) -> None:
        """From now on it is this phase, whose bytes are counted from zero; the same one again goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far it is: `total_bytes` is None where nobody knows; durations since the beginning, and of the phase."""

    phase: str
    done_bytes: int
    total_bytes: int | None
    elapsed_s: float
    phase_s: float


def announced(port: Port, phases: Mapping[str, str], announce: Announce) -> Port:
    """The port, announcing the phase of each method that `phases` names before it is called."""
    return cast("Port", _Announcing(port, phases, announce))


@contextmanager
def telling(output: Output) -> Iterator[Teller]:
    """What is to be told of phases and bytes, while the context lasts."""
    if output.json_progress:
        yield from _telling_events()
    elif output.verbose:
        yield _Lines(output)
    elif not output.quiet and shows_bars(sys.stderr):
        yield from _showing_a_bar()
    else:
        yield _Silent()


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


def _telling_events() -> Iterator[Teller]:
    events = _Events()
    try:
        yield events
    except BaseException:
        events.end("failed")
        raise
    events.end("done")


def _showing_a_bar() -> Iterator[Teller]:
    counter = _Counter()
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(counter, over), daemon=True, name="progress")
    thread.start()
    try:
        yield counter
    finally:
        over.set()
        try:
            thread.join()
        except BaseException:
            # Interrupted in this very moment: the terminal is made clean nevertheless.
            thread.join()
            raise


def _show(counter: _Counter, over: threading.Event) -> None:
    """In a thread of its own: the bar, once PATIENCE_S are over and there is a phase."""
    if over.wait(PATIENCE_S):
        return
    while not counter.standing().phase:  # whoever is asked for a passphrase now wants to see what he types
        if over.wait(PATIENCE_S):
            return
    from ckpt.cli.bar import show  # noqa: PLC0415 - rich takes 70 ms, only where something is shown

    with suppress(OSError):  # the terminal is gone
        show(counter.standing, over)


class _Silent(Unwatched):
    """Tells nobody."""

    def __call__(self, phase: str) -> None:
        pass


class _Lines(_Silent):
    """A line a phase."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began = time.monotonic()
        self._last = ""

    def __call__(self, phase: str) -> None:
        if phase != self._last:
            self._output.note(f"{(time.monotonic() - self._began) * 1000:8.1f} ms  {phase}")
        self._last = phase


class _Counter:
    """Remembers how far it is."""

    is_watched: Final = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._phase_began = time.monotonic()
        self._phase = ""
        self._done = 0
        self._total = 0

    def __call__(self, phase: str) -> None:
        if phase == self._phase:
            return
        with self._lock:
            self._phase, self._done, self._total = phase, 0, 0
            self._phase_began = time.monotonic()

    def expect(self, size_bytes: int) -> None:
        with self._lock:
            self._total += size_bytes

    def moved(self, size_bytes: int) -> None:
        with self._lock:
            self._done += size_bytes

    def standing(self) -> Standing:
        """As it is now."""
        with self._lock:
            now = time.monotonic()
            return Standing(
                phase=self._phase,
                # What had to be read twice counts once.
                done_bytes=min(self._done, self._total) if self._total else self._done,
                total_bytes=self._total or None,
                elapsed_s=now - self._began,
                phase_s=now - self._phase_began,
            )


class _Events(_Counter):
    """Writes a line of JSON for each phase, and some on the way."""

    def __init__(self) -> None:
        super().__init__()
        self._told = (0.0, 0)
        self._gone = False

    def __call__(self, phase: str) -> None:
        if phase != self._phase:
            self._tell_rest()
            super().__call__(phase)
            self._tell("phase")

    def moved(self, size_bytes: int) -> None:
        super().moved(size_bytes)
        if time.monotonic() - self._told[0] >= EVENTS_APART_S:
            self._tell("progress")

    def end(self, event: str) -> None:
        """Tell how it ended."""
        self._tell_rest()
        self._tell(event)

    def _tell_rest(self) -> None:
        if self.standing().done_bytes != self._told[1]:
            self._tell("progress")

    def _tell(self, event: str) -> None:
        standing = self.standing()
        self._told = time.monotonic(), standing.done_bytes
        if self._gone:
            return
        try:
            print_event(
                {
                    "event": event,
                    "phase": standing.phase or None,
                    "bytes": standing.done_bytes,
                    "total_bytes": standing.total_bytes,
                    "elapsed_ms": round(standing.elapsed_s * 1000, 3),
                }
            )
        except OSError:
            self._gone = True
            # Python flushes at its end what is left in the buffer, and would exit with 120 if it cannot.
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)
