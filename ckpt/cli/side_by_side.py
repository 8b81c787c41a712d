"""Do the same with several jobs, each in a process of its own, some at once.

Rules:
- A child is forked before this process has any thread, and does nothing but its one job.
- What another ckpt process is at is tried again until the time is over.
- Whoever is not done by then is asked to end, undoes what it had begun, and counts as one that failed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from ckpt.cli.failures import BUG, document_of
from ckpt.errors import CkptError, Interrupted, Locked
from ckpt.units import SECOND, JobName, Nanoseconds

_AGAIN_S: Final = 0.2
_UNDO_S: Final = 30.0
_ANSWER_BYTES_MAX: Final = 16 << 20

Act = Callable[[JobName], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one job: the document that was made of it, or the error; neither: it was not done in time."""

    job: JobName
    document: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class _Child:
    job: JobName
    pid: int
    said: bytearray


class SideBySide:
    """Jobs under way. Close it, however it ends: then no child is left."""

    def __init__(self, act: Act, *, at_once: int, timeout: Nanoseconds) -> None:
        self._act = act
        self._at_once = at_once
        self._deadline = time.monotonic() + timeout / SECOND
        self._children = selectors.DefaultSelector()
        self._later: deque[tuple[float, JobName]] = deque()

    def run(self, jobs: Sequence[JobName]) -> Iterator[Outcome]:
        """Act on each job; gives the outcomes as they come.

        Raises:
            Interrupted: by the user; the children have ended then.
        """
        self._later = deque((0.0, job) for job in jobs)
        try:
            while self._later or self._children.get_map():
                now = time.monotonic()
                if now >= self._deadline:
                    yield from self._give_up()
                    return
                while self._may_begin(now):
                    self._begin(self._later.popleft()[1])
                yield from self._listen(min(self._deadline, self._next_at(now)) - now)
        finally:
            self.close()

    def close(self) -> None:
        """End the children that are left: asked first, and killed if they take too long to undo."""
        ends = time.monotonic() + _UNDO_S
        self._signal(signal.SIGTERM)
        while self._children.get_map():
            if time.monotonic() >= ends:
                self._signal(signal.SIGKILL)  # their guardians undo it
            for _ in self._listen(_AGAIN_S):
                pass

    def _may_begin(self, now: float) -> bool:
        return (
            bool(self._later) and len(self._children.get_map()) < self._at_once and self._later[0][0] <= now
        )

    def _next_at(self, now: float) -> float:
        if self._later and len(self._children.get_map()) < self._at_once:
            return max(now, self._later[0][0])
        return self._deadline

    def _begin(self, job: JobName) -> None:
        answer, say = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(answer)
            _work(self._act, job, say)
        os.close(say)
        self._children.register(answer, selectors.EVENT_READ, _Child(job=job, pid=pid, said=bytearray()))

    def _listen(self, timeout_s: float) -> Iterator[Outcome]:
        for key, _events in self._children.select(max(0.0, timeout_s)):
            child: _Child = key.data
            packet = os.read(key.fd, 1 << 16)
            child.said += packet[: max(0, _ANSWER_BYTES_MAX - len(child.said))]
            if packet:
                continue
            self._children.unregister(key.fd)
            os.close(key.fd)
            os.waitpid(child.pid, 0)
            outcome = _outcome(child)
            if outcome.error is not None and outcome.error["slug"] == Locked.slug:
                self._later.append((time.monotonic() + _AGAIN_S, child.job))
            else:
                yield outcome

    def _give_up(self) -> Iterator[Outcome]:
        self._signal(signal.SIGTERM)
        ends = time.monotonic() + _UNDO_S
        while self._children.get_map() and time.monotonic() < ends:
            for outcome in self._listen(ends - time.monotonic()):
                late = outcome.error is not None and outcome.error["slug"] == Interrupted.slug
                yield Outcome(job=outcome.job) if late else outcome
        yield from (Outcome(job=key.data.job) for key in self._children.get_map().values())
        yield from (Outcome(job=job) for _at, job in self._later)

    def _signal(self, number: signal.Signals) -> None:
        for key in self._children.get_map().values():
            with suppress(ProcessLookupError):
                os.kill(key.data.pid, number)


def _work(act: Act, job: JobName, say: int) -> NoReturn:
    """In the child: do it, tell how it ended, and end."""
    code = BUG
    try:
        answer: dict[str, Any]
        try:
            answer = {"document": act(job)}
        except CkptError as error:
            answer = {"error": document_of(error)}
        except Exception as error:  # noqa: BLE001 - what a bug does to one job is told like any other failure
            message = f"a bug in ckpt: {type(error).__name__}: {error}"
            answer = {"error": {"slug": "bug", "message": message, "hint": "", "exit_code": BUG}}
        with os.fdopen(say, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)


def _outcome(child: _Child) -> Outcome:
    try:
        said = json.loads(bytes(child.said))
    except ValueError:
        message = "the process that was at it ended without a word"
        return Outcome(job=child.job, error={"slug": "bug", "message": message, "hint": "", "exit_code": BUG})
    return Outcome(job=child.job, document=said.get("document"), error=said.get("error"))
