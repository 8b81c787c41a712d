"""When the next checkpoint of a job is due: by a fixed interval, or by what one costs and how often a host fails.

Rules: the time from one beginning to the next counts, and none begins before the former has ended. What counts is the
last checkpoint alone: if each pause is paid for before the next one, the share of time frozen holds over any stretch
of time, however the job grows; a mean would lag behind a job whose memory doubles.
Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
Computer Systems 22 (2006), 303-312, equation 37; its first term is J. W. Young's (1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ckpt.model.supervision import Interval
from ckpt.units import SECOND, Nanoseconds

FIRST_OF_AUTO: Final = Nanoseconds(10 * SECOND)
"""When an automatic interval takes its first checkpoint, which measures the cost: a job that is shorter never pays."""

_RETRY_MIN: Final = SECOND
_RETRY_MAX: Final = Nanoseconds(600 * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a checkpoint took: after `lead_ns` the job stood still for `frozen_ns`; all was durable after `total_ns`."""

    frozen_ns: Nanoseconds
    total_ns: Nanoseconds
    lead_ns: Nanoseconds = Nanoseconds(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """The rhythm of one job; `cpus` is how many processors it can use."""

    interval: Interval
    cpus: int = 1

    @property
    def first_wait(self) -> Nanoseconds:
        """How long after the job's beginning the first one begins."""
        return FIRST_OF_AUTO if self.interval.auto else self.interval.every_ns

    def wait_after(self, cost: Cost) -> Nanoseconds:
        """How long after the beginning of the last checkpoint, which cost this, the next one begins."""
        wanted = self._optimum(cost) if self.interval.auto else self.interval.every_ns
        # From one freeze to the next: how long it takes until it comes to that differs from time to time.
        paid = cost.lead_ns + math.ceil(cost.frozen_ns / self.interval.max_frozen)
        return Nanoseconds(max(wanted, paid, cost.total_ns))

    def wait_after_failures(self, count: int) -> Nanoseconds:
        """How long after the last of `count` attempts in a row that failed the next one begins.

        Twice as long each time, up to ten minutes, or the interval where that is longer.
        """
        usual = max(self.first_wait, _RETRY_MIN)
        return Nanoseconds(min(usual * 2 ** min(max(count - 1, 0), 32), max(usual, _RETRY_MAX)))

    def _optimum(self, cost: Cost) -> int:
        """From beginning to beginning."""
        # Storing goes on beside the job and keeps about one processor busy: that is what a job that uses
        # all of them loses, beside its pause.
        beside = max(0, cost.total_ns - cost.frozen_ns) / self.cpus
        delta, mtbf = cost.frozen_ns + beside, float(self.interval.mtbf_ns)
        if delta >= 2 * mtbf:
            return round(mtbf + delta)
        share = delta / (2 * mtbf)
        return round(math.sqrt(2 * delta * mtbf) * (1 + math.sqrt(share) / 3 + share / 9))
