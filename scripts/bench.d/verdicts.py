"""The goals of the store, line by line, as measured: reported, never asserted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chain import LIMIT, Chain
from rounds import ACTS, FETCH, FIRST, SECOND, Figures

FIRST_MAX, SECOND_FASTER, FETCH_MAX = 1.0, 5.0, 1.0
PEAK_MIB_MAX = 256
SECOND_REDIS_MIB = 5
GROWTH_MAX = 1.25
MIB = 1 << 20
PEERS = ("restic", "borg")


@dataclass(frozen=True)
class Goal:
    """One goal, what was found, and whether that is enough."""

    text: str
    found: str
    met: bool


def of_ballast(name: str, figures: dict[str, Figures]) -> Iterator[Goal]:
    """Those that compare with tar+zstd, and the peak."""
    ours = figures.get("ckpt")
    if ours is None:
        return
    tar = figures.get("tar+zstd")
    if tar is not None:
        first = ours.ratio(tar, FIRST)
        yield Goal(
            f"{name}: first ingest <= {FIRST_MAX:.1f} × tar+zstd", f"{first:.2f} ×", first <= FIRST_MAX
        )
        faster = 1 / ours.ratio(tar, SECOND)
        yield Goal(
            f"{name}: second ingest at least {SECOND_FASTER:.0f} × faster than tar+zstd",
            f"{faster:.1f} ×",
            faster >= SECOND_FASTER,
        )
        fetch = ours.ratio(tar, FETCH)
        yield Goal(
            f"{name}: fetch <= {FETCH_MAX:.1f} × zstd -d into tar x", f"{fetch:.2f} ×", fetch <= FETCH_MAX
        )
    peak = max(ours.peak_mib(act) for act in ACTS)
    yield Goal(f"{name}: peak memory < {PEAK_MIB_MAX} MiB", f"{peak:.0f} MiB", peak < PEAK_MIB_MAX)


def against_peers(name: str, figures: dict[str, Figures]) -> Iterator[Goal]:
    """Fewer stored bytes and less time than the other deduplicating tools."""
    ours = figures.get("ckpt")
    if ours is None:
        return
    for peer in PEERS:
        its = figures.get(peer)
        if its is None:
            continue
        for what, mine, other in (
            ("first", ours.stored_bytes, its.stored_bytes),
            ("second", ours.added_bytes, its.added_bytes),
        ):
            yield Goal(
                f"{name}: {what} checkpoint stores fewer bytes than {peer}",
                f"{mine / MIB:.1f} against {other / MIB:.1f} MiB",
                mine < other,
            )
        for act in ACTS:
            ratio = ours.ratio(its, act)
            what = act if act == FETCH else f"{act} ingest"
            yield Goal(f"{name}: {what} takes less time than {peer}", f"{ratio:.2f} ×", ratio < 1)


def of_redis(figures: dict[str, Figures]) -> Iterator[Goal]:
    ours = figures.get("ckpt")
    if ours is not None:
        added = ours.added_bytes / MIB
        yield Goal(
            f"redis: second checkpoint < {SECOND_REDIS_MIB} MiB stored",
            f"{added:.2f} MiB",
            added < SECOND_REDIS_MIB,
        )


def of_chain(found: Chain) -> Goal:
    return Goal(
        f"redis: a chain of {len(found.links)} stores less than first + {LIMIT} × (changed pages, compressed)",
        f"{found.stored_bytes / MIB:.1f} of {found.allowed_bytes / MIB:.1f} MiB",
        found.stored_bytes < found.allowed_bytes,
    )


def of_growth(small: tuple[int, Figures], big: tuple[int, Figures]) -> Iterator[Goal]:
    """Time grows as the size does, memory does not."""
    times = big[0] / small[0]
    for act in ACTS:
        grew = big[1].seconds(act) / small[1].seconds(act)
        what = act if act == FETCH else f"{act} ingest"
        yield Goal(
            f"ballast: {what} grows linearly from {small[0]} to {big[0]} MiB (at most {GROWTH_MAX} × {times:g} ×)",
            f"{grew:.1f} ×",
            grew <= GROWTH_MAX * times,
        )
    peaks = [max(figures.peak_mib(act) for act in ACTS) for _, figures in (small, big)]
    yield Goal(
        f"ballast: peak memory is flat from {small[0]} to {big[0]} MiB (at most {GROWTH_MAX} ×)",
        f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB",
        peaks[1] <= GROWTH_MAX * peaks[0],
    )
