"""What members that wait for each other may rely on: forked processes, and the fake of the scenario tests."""

from __future__ import annotations

import errno
import os
import signal
import struct
from enum import IntEnum

import pytest
from fakes.together import FakeTogether
from harness.processes import is_dead
from harness.waiting import await_condition

from ckpt.errors import Interrupted, Locked
from ckpt.flow.group_ports import Meeting, Together
from ckpt.host.together import ForkedTogether
from ckpt.model.reports import Problem
from ckpt.units import JobName

A, B, C = JobName("a"), JobName("b"), JobName("c")


class Point(IntEnum):
    FIRST = 0
    LAST = 1


@pytest.fixture(params=[FakeTogether, ForkedTogether])
def together(request: pytest.FixtureRequest) -> Together:
    made: Together = request.param()
    return made


def report(member: JobName, said: int) -> Problem:
    return Problem(slug="x", subject=member, message=str(said))


def test_all_pass_each_point_together_and_hear_the_greatest_number(together: Together) -> None:
    def work(member: JobName, meeting: Meeting) -> Problem:
        first = meeting.arrive(Point.FIRST, {A: 3, B: -7, C: 5}[member])
        # A dump that begins anew comes to a point again.
        assert meeting.arrive(Point.FIRST) == first
        meeting.arrive(Point.LAST)
        return report(member, first)

    ends = together.run((A, B, C), work, Point, Problem)
    assert ends.reports == {member: report(member, 5) for member in (A, B, C)}
    assert ends.failures == ()
    assert ends.passed(Point.LAST)


def test_who_fails_is_told_first_and_nobody_passes_the_next_point(together: Together) -> None:
    def work(member: JobName, meeting: Meeting) -> Problem:
        meeting.arrive(Point.FIRST)
        if member == B:
            raise Locked(subject="Job b", holder="process 1")
        return report(member, meeting.arrive(Point.LAST))

    ends = together.run((A, B, C), work, Point, Problem)
    assert ends.reports == {}
    assert (ends.failures[0].member, ends.failures[0].slug) == (B, "locked")
    assert {each.slug for each in ends.failures[1:]} == {"gave-up"}
    assert "Job b" in ends.failures[0].message
    assert ends.passed(Point.FIRST)
    assert not ends.passed(Point.LAST)


def test_a_process_that_is_killed_breaks_the_meeting_and_leaves_no_descriptor() -> None:
    def work(member: JobName, meeting: Meeting) -> Problem:
        meeting.arrive(Point.FIRST)
        if member == B:
            os.kill(os.getpid(), signal.SIGKILL)
        return report(member, meeting.arrive(Point.LAST))

    before = len(os.listdir("/proc/self/fd"))
    ends = ForkedTogether().run((A, B), work, Point, Problem)
    assert [(each.member, each.slug) for each in ends.failures] == [(B, "ended"), (A, "gave-up")]
    assert "SIGKILL" in ends.failures[0].message
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_goes_on_from_a_point_at_which_another_one_died() -> None:
    told, tells = os.pipe()
    parent = os.getpid()

    def work(member: JobName, meeting: Meeting) -> Problem:
        if member == B:
            os.write(tells, struct.pack("i", os.getpid()))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            # The parent hears of both at once.
            waking = f"sleep 0.5; kill -CONT {parent}"
            os.posix_spawn("/bin/sh", ["sh", "-c", waking], os.environ)
            os.kill(parent, signal.SIGSTOP)
            (other,) = struct.unpack("i", os.read(told, 4))
            await_condition(lambda: is_dead(other), "the other one to end")
        return report(member, meeting.arrive(Point.FIRST))

    ends = ForkedTogether().run((A, B), work, Point, Problem)
    os.close(told)
    os.close(tells)
    assert [(each.member, each.slug) for each in ends.failures] == [(B, "ended"), (A, "gave-up")]
    assert not ends.passed(Point.FIRST)


def test_an_interruption_ends_all_processes_before_it_is_raised() -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted(operation="a dump")

    parent = os.getpid()

    def work(member: JobName, meeting: Meeting) -> Problem:
        if member == B:
            os.kill(parent, signal.SIGTERM)
            signal.pause()
        meeting.arrive(Point.FIRST)
        return report(member, 0)

    former = signal.signal(signal.SIGTERM, interrupt), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interrupted):
            ForkedTogether().run((A, B), work, Point, Problem)
    finally:
        signal.signal(signal.SIGTERM, former[0])
        signal.signal(signal.SIGINT, former[1])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_an_interruption_while_an_end_is_noted_loses_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    waitpid, came = os.waitpid, []

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise Interrupted(operation="a dump")

    def wait_and_interrupt(pid: int, options: int) -> tuple[int, int]:
        ended = waitpid(pid, options)
        if not came:
            signal.raise_signal(signal.SIGTERM)
        return ended

    def work(member: JobName, meeting: Meeting) -> Problem:
        meeting.arrive(Point.LAST)
        return report(member, 0)

    monkeypatch.setattr(os, "waitpid", wait_and_interrupt)
    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        ends = ForkedTogether().run((A, B), work, Point, Problem)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert came
    # All had come to the last point: there was nothing left to be interrupted.
    assert ends.reports.keys() == {A, B}


def test_a_process_that_cannot_be_forked_ends_those_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, forked = os.fork, []

    def fork_once() -> int:
        if forked:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        forked.append(fork())
        return forked[0]

    def work(member: JobName, meeting: Meeting) -> Problem:
        meeting.arrive(Point.LAST)
        return report(member, 0)

    monkeypatch.setattr(os, "fork", fork_once)
    with pytest.raises(BlockingIOError):
        ForkedTogether().run((A, B), work, Point, Problem)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_processes_whose_parent_is_killed_do_not_go_on() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:

        def work(member: JobName, meeting: Meeting) -> Problem:
            if member == B:
                os.kill(os.getppid(), signal.SIGKILL)
            try:
                meeting.arrive(Point.LAST)
            finally:
                os.write(writing, b"raised" if member == A else b"")
            return report(member, 0)

        ForkedTogether().run((A, B), work, Point, Problem)
        os._exit(0)
    os.close(writing)
    assert os.waitpid(parent, 0)[1] == signal.SIGKILL
    with open(reading, "rb") as stream:
        assert stream.read() in {b"raised", b""}
