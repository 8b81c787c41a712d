"""The conductor of a supervised job: when a checkpoint is taken, and what a signal means.

Rules:
- One checkpoint at a time. A last one waits for one that is under way for half of its grace, then has it given up.
- What fails leaves the job as it was: it is told once a kind, and tried again later.
- Where the first one is not due soon, it is looked at once whether one could be taken: nobody shall learn after an hour
  that there is none.
- When the grace is over the job gets its SIGTERM, as if nobody had wanted a checkpoint.
"""

from __future__ import annotations

import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from ckpt.cli import wiring
from ckpt.cli.checkpointing import Checkpointing, Failed, Foreseen, Frozen, Order, Taken, Untidy, preload
from ckpt.cli.group_supervising import Ending, Leadership
from ckpt.cli.supervising import Participant, forward
from ckpt.errors import CkptError
from ckpt.model.pacing import Pacing
from ckpt.model.supervision import AtEnd, OnTerm, Reason, Supervision
from ckpt.units import MILLISECOND, SECOND, Nanoseconds, human_bytes, milliseconds

if TYPE_CHECKING:
    from ckpt.host.jobs import JobRecord, JobRegistry

_SOON: Final = Nanoseconds(500 * MILLISECOND)
"""When what another ckpt was in the way of is tried again."""
_CANCEL_TIMEOUT: Final = Nanoseconds(10 * SECOND)
"""How long undoing may take; then the guardian does it."""
_LOOK_AFTER: Final = Nanoseconds(2 * SECOND)
"""When it is looked whether the job can be checkpointed: by then most programs have opened what they need."""
_LOOKS_ABOVE: Final = Nanoseconds(5 * SECOND)
"""A first checkpoint that comes sooner says it itself."""
_SHORT: Final = Nanoseconds(10 * SECOND)
_LATER: Final = frozenset(("locked", "not-now"))
"""Slugs of what is no failure, but came at a bad moment."""
_EVER: Final = "ever "


class Teller(Protocol):
    """Who is told what a supervisor does."""

    def note(self, sentence: str) -> None:
        """What went well."""

    def say(self, sentence: str) -> None:
        """What the user must know."""

    def warn(self, sentence: str) -> None:
        """What did not."""


@dataclass(slots=True, kw_only=True)
class _UnderWay:
    """A checkpoint under way."""

    process: Checkpointing
    order: Order
    began: Nanoseconds
    is_over: bool = False
    cancelled_at: Nanoseconds | None = None
    is_killed: bool = False


class Supervisor:
    """Supervises one job."""

    def __init__(
        self,
        registry: JobRegistry,
        record: JobRecord,
        supervision: Supervision,
        teller: Teller,
        *,
        cpus: int = 1,
        participants: Sequence[Participant] = (),
    ) -> None:
        """Begin now: the first interval counts from here."""
        self._registry = registry
        self._record = record
        self._supervision = supervision
        self._teller = teller
        self._participants = participants
        self._pacing = (
            None if supervision.interval is None else Pacing(interval=supervision.interval, cpus=max(1, cpus))
        )
        self._due: Nanoseconds | None = (
            None if self._pacing is None else Nanoseconds(_now() + self._pacing.first_wait)
        )
        self._look_at: Nanoseconds | None = None
        if self._pacing is None or self._pacing.first_wait > _LOOKS_ABOVE:
            self._look_at = Nanoseconds(_now() + _LOOK_AFTER)
        self._leadership = Leadership(supervision.group)
        self._under_way: _UnderWay | None = None
        self._asked = False
        self._term_began: Nanoseconds | None = None
        self._retry_at = Nanoseconds(0)
        self._failures = 0
        self._told: set[str] = set()
        self._has_given_up = False
        self._is_loaded = False
        self._job_ended = False
        self._is_stopped = False

    @property
    def was_asked_to_end(self) -> bool:
        """Whether a signal asked for a last checkpoint."""
        return self._term_began is not None or self._has_given_up

    def descriptors(self) -> Mapping[int, int]:
        """The channel of the checkpoint under way."""
        return {} if self._under_way is None else {self._under_way.process.descriptor: select.POLLIN}

    def act(self, fd: int, events: int) -> None:  # noqa: ARG002 - a participant's
        """Hear what it says."""
        under_way = self._under_way
        assert under_way is not None
        match under_way.process.receive():
            case None:
                self._ended(under_way)
            case Frozen():
                self._note_instant(under_way.process)
            case Taken() as taken:
                self._taken(under_way, taken)
            case Failed() as failed:
                self._failed(under_way, failed)
            case Foreseen(obstacles=obstacles):
                self._foreseen(under_way, obstacles)
            case Untidy(slug=slug, message=message):
                self._tell_once(f"untidy: {slug}", message, forgets=False)

    def at_freeze(self) -> None:
        """Let all take note."""
        for each in self._participants:
            each.at_freeze()

    def close(self) -> None:
        """Nothing of it outlives the loop: it ends when nothing is under way."""
        self._leadership.close()

    def heard(self, number: int) -> None:
        """Act on what is for us, and hand on the others."""
        if number == signal.SIGUSR1:
            self._asked = True
        elif (
            number == signal.SIGTERM
            and self._supervision.on_term is OnTerm.CHECKPOINT
            and not self._has_given_up
        ):
            if self._term_began is None:
                # Who has yet to look at the job must not bring it back when it has ended.
                Ending(self._supervision).ask()
                self.end()
        else:
            forward(self._record, number)

    def end(self) -> None:
        """End the job with a last checkpoint."""
        self._term_began = _now()

    def wake_at(self) -> Nanoseconds | None:
        """The next instant at which something is due."""
        times = []
        if (under_way := self._under_way) is not None:
            if under_way.cancelled_at is not None and not under_way.is_killed:
                times.append(under_way.cancelled_at + _CANCEL_TIMEOUT)
            elif self._term_began is not None and not under_way.is_over:
                times.append(self._patience_ends(under_way))
        elif not (self._job_ended or self._is_stopped):
            if self._term_began is not None:
                times.append(min(self._retry_at, self._term_began + self._supervision.grace_ns))
            elif self._asked:
                times.append(self._retry_at)
            else:
                later = (each for each in (self._due, self._look_at) if each is not None)
                times += [max(each, self._retry_at) for each in later]
        return Nanoseconds(min(times)) if times else None

    def turn(self) -> None:
        """Begin what is due, and give up what takes too long."""
        now = _now()
        if self._under_way is not None:
            self._watch_over(self._under_way, now)
        elif self._job_ended or self._is_stopped:
            return
        elif self._term_began is not None:
            if now >= self._term_began + self._supervision.grace_ns:
                self._give_up("it could not be taken in time")
            elif now >= self._retry_at:
                self._begin(Reason.TERM, now, stop=True)
        elif now >= self._retry_at:
            if self._asked:
                self._asked = False
                self._begin(Reason.ASKED, now)
            elif self._pacing is not None and self._due is not None and now >= self._due:
                if self._leadership.leads():
                    self._begin(Reason.PERIODIC, now)
                else:
                    self._due = Nanoseconds(now + self._pacing.first_wait)
            elif self._look_at is not None and now >= self._look_at:
                self._look_at = None
                self._begin(Reason.PERIODIC, now, only_looks=True)

    def may_end(self) -> bool:
        """Whether nothing is under way; what would be removed at once is given up."""
        if not self._job_ended:
            self._job_ended = True
            if (
                (under_way := self._under_way) is not None
                and not (under_way.order.stop or under_way.is_over)
                and (under_way.order.only_looks or self._is_of_no_use())
            ):
                self._cancel(under_way, _now())
        return self._under_way is None

    def _begin(
        self, reason: Reason, now: Nanoseconds, *, stop: bool = False, only_looks: bool = False
    ) -> None:
        if not self._is_loaded and not only_looks:
            preload()
            self._is_loaded = True
        order = Order(
            job=self._record.name,
            supervision=self._supervision,
            reason=reason,
            stop=stop,
            asks_at_freeze=bool(self._participants),
            only_looks=only_looks,
        )
        try:
            process = Checkpointing.start(order)
        except OSError as error:
            self._tell_once("fork", f"no checkpoint of {self._record.name} now: {error.strerror}")
            self._retry_at = Nanoseconds(now + _SOON)
            return
        self._under_way = _UnderWay(process=process, order=order, began=_now())

    def _note_instant(self, process: Checkpointing) -> None:
        try:
            self.at_freeze()
        except (CkptError, OSError) as error:
            process.refuse(f"what belongs to it could not be noted ({error})")
        else:
            process.go_on()

    def _taken(self, under_way: _UnderWay, taken: Taken) -> None:
        under_way.is_over = True
        self._failures = 0
        self._told = {each for each in self._told if each.startswith(_EVER)}
        self._look_at = None
        self._is_stopped = under_way.order.stop
        next_one = ""
        if self._pacing is not None:
            wait = self._pacing.wait_after(taken.cost)
            self._due = Nanoseconds(under_way.began + wait)
            if wait != self._pacing.interval.every_ns:  # found out, or longer than was asked for
                next_one = f", the next after {wait / SECOND:.{0 if wait >= _SHORT else 1}f} s"
        self._teller.note(
            f"checkpoint {taken.id[:12]} of {self._record.name}: frozen {milliseconds(taken.frozen_ns):.0f} ms, "
            f"in all {milliseconds(taken.total_ns):.0f} ms, stored {human_bytes(taken.stored_bytes)}{next_one}"
        )
        if self._job_ended and not under_way.order.stop:
            return  # nobody needs to know how one comes back that has ended, nor that its end interrupted this
        for warning in taken.warnings:
            self._tell_once(warning, warning, forgets=False)

    def _foreseen(self, under_way: _UnderWay, obstacles: tuple[str, ...]) -> None:
        under_way.is_over = True
        if self._job_ended:
            return
        for each in obstacles:
            self._teller.warn(f"{self._record.name} cannot be checkpointed as it is now: {each}")

    def _failed(self, under_way: _UnderWay, failed: Failed) -> None:
        if under_way.is_over:  # taken, and what came after it failed
            self._tell_once(failed.slug, failed.message)
            return
        under_way.is_over = True
        if under_way.order.only_looks:  # nothing is lost: the first checkpoint will say it
            return
        now = _now()
        is_last = under_way.order.stop
        if self._job_ended and not is_last:
            return
        if under_way.cancelled_at is not None:
            if is_last:
                seconds = self._supervision.grace_ns / SECOND
                self._give_up(f"it was not durable within {seconds:g} s")
            return
        if failed.slug in _LATER:
            self._retry_at = Nanoseconds(now + _SOON)
            self._asked = self._asked or under_way.order.reason is Reason.ASKED
            return
        self._tell_once(
            failed.slug,
            f"{under_way.order.reason.value} of {self._record.name} failed: {failed.message} {failed.hint}".strip(),
        )
        if is_last:
            self._give_up("it failed")
        elif self._pacing is not None:
            self._failures += 1
            self._due = Nanoseconds(now + self._pacing.wait_after_failures(self._failures))

    def _ended(self, under_way: _UnderWay) -> None:
        self._under_way = None
        if not under_way.is_over:
            died = Failed(slug="died", message="Its process was killed.", hint="", exit_code=1)
            self._failed(under_way, died)

    def _watch_over(self, under_way: _UnderWay, now: Nanoseconds) -> None:
        if under_way.is_over or under_way.is_killed:
            return
        if under_way.cancelled_at is not None:
            if now >= under_way.cancelled_at + _CANCEL_TIMEOUT:
                under_way.process.kill()
                under_way.is_killed = True
        elif self._term_began is not None and now >= self._patience_ends(under_way):
            self._cancel(under_way, now)

    def _patience_ends(self, under_way: _UnderWay) -> Nanoseconds:
        assert self._term_began is not None
        if under_way.order.only_looks:
            return self._term_began
        grace = self._supervision.grace_ns
        return Nanoseconds(self._term_began + (grace if under_way.order.stop else grace // 2))

    def _cancel(self, under_way: _UnderWay, now: Nanoseconds) -> None:
        under_way.process.cancel()
        under_way.cancelled_at = now

    def _give_up(self, why: str) -> None:
        """The last checkpoint cannot be had: the job ends as it would without us."""
        self._term_began = None
        self._has_given_up = True
        self._teller.warn(f"{self._record.name} gets SIGTERM without a last checkpoint: {why}")
        forward(self._record, signal.SIGTERM)

    def _is_of_no_use(self) -> bool:
        """Whether what is being taken would be removed at once, because the job has ended well."""
        match self._supervision.at_end:
            case AtEnd.KEEP:
                return False
            case AtEnd.SUCCESS | AtEnd.DELETE:
                try:
                    ended = self._registry.wait(self._record.name, 1.0)
                except CkptError:
                    return False
                return ended is not None and ended.shell_code == 0

    def _tell_once(self, kind: str, sentence: str, *, forgets: bool = True) -> None:
        """Warn, unless the same was told since the last success, or with `forgets` off, ever."""
        key = kind if forgets else _EVER + kind
        if key not in self._told:
            self._told.add(key)
            self._teller.warn(sentence)


def _now() -> Nanoseconds:
    return wiring.stopwatch()
