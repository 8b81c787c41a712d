from __future__ import annotations

import math

import pytest

from ckpt.errors import Usage
from ckpt.model.pacing import FIRST_OF_AUTO, Cost, Pacing
from ckpt.model.supervision import Interval
from ckpt.units import SECOND, Nanoseconds

HOUR = 3600 * SECOND


def seconds(number: float) -> Nanoseconds:
    return Nanoseconds(round(number * SECOND))


def cost(frozen_s: float, total_s: float | None = None) -> Cost:
    return Cost(frozen_ns=seconds(frozen_s), total_ns=seconds(frozen_s if total_s is None else total_s))


def every(interval_s: float, max_frozen: float = 0.01) -> Pacing:
    return Pacing(interval=Interval(every_ns=seconds(interval_s), max_frozen=max_frozen))


def auto(mtbf_s: float, max_frozen: float = 1.0, cpus: int = 1) -> Pacing:
    interval = Interval(auto=True, mtbf_ns=seconds(mtbf_s), max_frozen=max_frozen)
    return Pacing(interval=interval, cpus=cpus)


def test_a_fixed_interval_is_kept_while_its_pauses_are_short() -> None:
    assert every(10).first_wait == seconds(10)
    assert every(10).wait_after(cost(0.1, 2)) == seconds(10)


def test_a_long_pause_is_paid_for_before_the_next_one() -> None:
    assert every(10).wait_after(cost(0.5)) == seconds(50)
    assert every(10, max_frozen=0.5).wait_after(cost(0.5)) == seconds(10)


def test_none_begins_before_the_former_has_ended() -> None:
    assert every(2).wait_after(cost(0.001, 7)) == seconds(7)
    assert auto(60).wait_after(cost(0.0001, 300)) >= seconds(300)


def test_the_optimum_is_youngs_where_failures_are_rare_and_dalys_where_they_are_not() -> None:
    rare = auto(100 * 3600).wait_after(cost(0.01))
    assert rare == pytest.approx(math.sqrt(2 * 0.01 * 360_000) * SECOND, rel=1e-3)
    # Daly's table: what is computed between two checkpoints of 5 minutes with failures every 6 hours is 1h48m;
    # with his two further terms it is longer than Young's.
    delta, mtbf = 300.0, 6 * 3600.0
    share = delta / (2 * mtbf)
    wanted = math.sqrt(2 * delta * mtbf) * (1 + math.sqrt(share) / 3 + share / 9)
    assert auto(mtbf).wait_after(cost(delta)) == pytest.approx(wanted * SECOND, rel=1e-9)
    assert auto(10).wait_after(cost(25)) == seconds(35)


def test_the_optimum_is_the_one_that_wastes_least() -> None:
    """By Daly's own model of the whole time, equation 20: M e^(R/M) (e^((t+d)/M) - 1) T/t, restarts left out."""
    delta, mtbf = 20.0, 1800.0

    def wasted(computed_s: float) -> float:
        return mtbf * math.expm1((computed_s + delta) / mtbf) / computed_s

    best = min(range(10, 3000), key=wasted)
    assert auto(mtbf).wait_after(cost(delta)) / SECOND - delta == pytest.approx(best, rel=0.02)


def test_automatic_intervals_keep_the_share_too() -> None:
    assert auto(60, max_frozen=0.01).wait_after(cost(2)) == seconds(200)
    assert auto(60).first_wait == FIRST_OF_AUTO


def test_what_is_stored_beside_the_job_costs_less_on_more_processors() -> None:
    both = [auto(36000, cpus=cpus).wait_after(cost(0.1, 10)) for cpus in (1, 16)]
    assert both[0] > both[1] > auto(36000).wait_after(cost(0.1))


def test_failures_make_it_rarer_up_to_a_limit() -> None:
    waits = [every(2).wait_after_failures(count) for count in (1, 2, 3, 50)]
    assert waits == [seconds(2), seconds(4), seconds(8), seconds(600)]
    assert every(3600).wait_after_failures(9) == seconds(3600)
    assert every(0.01).wait_after_failures(1) == seconds(1)


@pytest.mark.parametrize(
    "wrong", [{"max_frozen": 0.0}, {"max_frozen": 1.01}, {"every_ns": 0}, {"auto": True, "mtbf_ns": 0}]
)
def test_an_interval_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Usage):
        Interval(**{"every_ns": SECOND, **wrong})  # type: ignore[arg-type]


def test_the_share_holds_from_one_freeze_to_the_next_however_long_it_took_until_then() -> None:
    slow = Cost(lead_ns=seconds(3), frozen_ns=seconds(0.5), total_ns=seconds(4))
    assert every(1).wait_after(slow) == seconds(53)
