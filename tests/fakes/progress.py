"""Somebody who watches, and writes down what is told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Watching:
    """Fits Progress, and cli.progress.Teller; `heard` has phases and expected bytes in order."""

    heard: list[object] = field(default_factory=list)
    expected: int = 0
    done: int = 0
    is_watched: bool = True

    def __call__(self, phase: str) -> None:
        self.heard.append(phase)

    def expect(self, size_bytes: int) -> None:
        self.heard.append(size_bytes)
        self.expected += size_bytes

    def moved(self, size_bytes: int) -> None:
        assert size_bytes >= 0
        self.done += size_bytes
