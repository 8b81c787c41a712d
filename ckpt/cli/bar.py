"""The bar on the terminal's last line: phase, bytes, rate, time.

Rules: it is taken off when it is over. The only module that imports rich for it, and only once it is shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from ckpt.units import human_bytes

if TYPE_CHECKING:
    from ckpt.cli.progress import Standing

_FRAME_S: Final = 0.1
_BAR_COLUMNS: Final = 16
_RATE_AFTER_S: Final = 0.2
"""Before that a rate is a guess."""


def show(standing: Callable[[], Standing], over: threading.Event) -> None:
    """Show how far it is until it is over."""
    console = Console(stderr=True)
    one_line = Column(no_wrap=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False, table_column=one_line),
        BarColumn(bar_width=_BAR_COLUMNS),
        TextColumn("{task.fields[amount]}", markup=False, table_column=one_line.copy()),
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,  # that is the result's, and perhaps no terminal
    )
    task = bar.add_task("", total=None, amount="")

    def draw() -> None:
        now = standing()
        room = console.width - _BAR_COLUMNS - 3  # two gaps, and the cursor
        amount = amount_of(now, with_rest=True)
        if len(now.phase) + len(amount) > room:
            amount = amount_of(now)
        room -= len(amount)
        bar.update(
            task,
            description=now.phase if len(now.phase) <= room else f"{now.phase[: max(0, room - 1)]}…",
            completed=now.done_bytes,
            total=now.total_bytes,
            amount=amount,
        )

    draw()
    with bar:
        while not over.wait(_FRAME_S):
            draw()
            bar.refresh()


def amount_of(standing: Standing, *, with_rest: bool = False) -> str:
    """What stands right of the bar: bytes done and in all, the rate in this phase, the time since the beginning.

    `with_rest` tells also how long the rest of the phase will take at this rate.
    """
    words = []
    if standing.total_bytes is not None:
        words.append(f"{human_bytes(standing.done_bytes)} of {human_bytes(standing.total_bytes)}")
    elif standing.done_bytes:
        words.append(human_bytes(standing.done_bytes))
    if standing.done_bytes and standing.phase_s >= _RATE_AFTER_S:
        words.append(f"{human_bytes(round(standing.done_bytes / standing.phase_s))}/s")
        if with_rest and standing.total_bytes is not None and standing.done_bytes < standing.total_bytes:
            left_s = (standing.total_bytes - standing.done_bytes) * standing.phase_s / standing.done_bytes
            words.append(f"{max(1, round(left_s))} s left")
    minutes, seconds = divmod(int(standing.elapsed_s), 60)
    words.append(f"{minutes}:{seconds:02}")
    return "  ".join(words)
