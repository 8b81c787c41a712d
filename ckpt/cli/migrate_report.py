"""What `ckpt migrate` tells: each round as it ends, and the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt.cli.output import Output, print_event
from ckpt.units import human_bytes, milliseconds

if TYPE_CHECKING:
    from ckpt.cli.progress import Teller
    from ckpt.model.moves import MigrateReport, RoundReport


class RoundTeller:
    """Tells of each round when it is over."""

    def __init__(self, output: Output, tell: Teller) -> None:
        self._output = output
        self._tell = tell
        self._count = 0

    def __call__(self, done: RoundReport) -> None:
        """One more round is over."""
        number, self._count = self._count, self._count + 1
        if self._output.json_progress:
            print_event({"event": "round", "round": number, **_round_document(done)})
        else:
            self._output.note(f"round {number}: {_round_text(done)}")


def migrate_document(report: MigrateReport) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "id": report.id,
        "job": report.job,
        "host": report.host,
        "pid": report.pid,
        "pids": list(report.pids),
        "cgroup": report.cgroup,
        "downtime_ms": milliseconds(report.downtime_ns),
        "dump_ms": milliseconds(report.dump_ns),
        "restore_ms": milliseconds(report.restore_ns),
        "total_ms": milliseconds(report.total_ns),
        "rounds": [_round_document(done) for done in report.rounds],
        "sent_bytes": report.sent_bytes,
        "lazy": report.lazy,
        "warnings": list(report.warnings),
    }


def migrate_text(report: MigrateReport) -> str:
    """The report for people."""
    lines = [
        (
            f"{report.job} runs on {report.host}: pid {report.pid} there, down for "
            f"{milliseconds(report.downtime_ns):.0f} ms, in all {report.total_ns / 1e9:.1f} s, "
            f"{human_bytes(report.sent_bytes)} sent"
        )
    ]
    *running, last = report.rounds
    lines += [f"  round {number}: {_round_text(done)}" for number, done in enumerate(running)]
    lines.append(
        f"  frozen: dump {milliseconds(report.dump_ns):.0f} ms, last changes {human_bytes(last.sent_bytes)}, "
        f"restore there {milliseconds(report.restore_ns):.0f} ms"
    )
    return "\n".join(lines)


def _round_document(done: RoundReport) -> dict[str, Any]:
    return {
        "sent_bytes": done.sent_bytes,
        "ms": milliseconds(done.ns),
        "changed_pages": done.changed_pages,
    }


def _round_text(done: RoundReport) -> str:
    rate = done.sent_bytes * 1e9 / max(1, done.ns)
    return (
        f"{done.changed_pages} pages, {human_bytes(done.sent_bytes)} in {milliseconds(done.ns):.0f} ms "
        f"({human_bytes(int(rate))}/s)"
    )
