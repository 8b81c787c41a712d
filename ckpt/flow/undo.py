"""What was done is undone: a step registers its undo before it is taken.

Rule: undos run in the reverse order of their registration, each whatever the others did; what fails is
collected and told as one UndoError, which never hides the first cause.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from ckpt.errors import UndoError


class Undo:
    """A context that undoes its steps when it is left by an exception."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._steps: list[tuple[str, Callable[[], object], bool]] = []

    def on_failure(self, name: str, undo: Callable[[], object]) -> None:
        """Call `undo` if the context is left by an exception."""
        self._steps.append((name, undo, False))

    def always(self, name: str, undo: Callable[[], object]) -> None:
        """Call `undo` when the context is left, however that happens."""
        self._steps.append((name, undo, True))

    def forget(self, name: str) -> None:
        """Drop the newest step of this name: it has been done, or must no longer be."""
        for index in range(len(self._steps) - 1, -1, -1):
            if self._steps[index][0] == name:
                del self._steps[index]
                return
        raise KeyError(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures: list[str] = []
        while self._steps:
            name, undo, in_any_case = self._steps.pop()
            if error is None and not in_any_case:
                continue
            try:
                undo()
            # An undo that fails must not keep the others from running, whatever it raised.
            except Exception as failure:  # noqa: BLE001
                failures.append(f"{name}: {failure}")
        if failures:
            cause = "it had succeeded" if error is None else str(error) or type(error).__name__
            raise UndoError(operation=self._operation, cause=cause, failures=tuple(failures)) from error
