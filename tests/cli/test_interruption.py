"""What SIGINT and SIGTERM do to a command."""

from __future__ import annotations

import json
import os
import signal
import time
import weakref
from collections.abc import Callable

import pytest

from ckpt.cli import interruption
from ckpt.cli.interruption import interruptible
from ckpt.cli.main import main
from ckpt.errors import Interrupted
from ckpt.flow.undo import Undo


def send(number: int) -> None:
    """Send ourselves a signal; its handler has run when this returns."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_raises(number: int) -> None:
    with pytest.raises(Interrupted, match="ckpt dump was interrupted"), interruptible("ckpt dump"):
        send(number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_one_that_comes_in_a_callback_whose_exceptions_are_swallowed_comes_again() -> None:
    class Watched:
        pass

    def drop() -> None:
        for _ in range(3):
            watched = Watched()
            seen.append(weakref.ref(watched, lambda _: send(signal.SIGTERM)))
            del watched
        time.sleep(5)

    seen: list[object] = []
    former = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted), interruptible("ckpt dump"):
        drop()
    assert signal.getsignal(signal.SIGALRM) is former


def test_one_that_is_to_come_again_does_not_come_after_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched:
        pass

    monkeypatch.setattr(interruption, "_AGAIN_S", 600)
    former = signal.getsignal(signal.SIGALRM)
    with interruptible("ckpt dump"):
        watched = Watched()
        seen = weakref.ref(watched, lambda _: send(signal.SIGTERM))
        del watched
        assert signal.getsignal(signal.SIGALRM) is not former
    assert seen() is None
    assert signal.getsignal(signal.SIGALRM) is former


def test_later_ones_do_not_disturb_what_is_being_undone() -> None:
    undone: list[str] = []

    def dump() -> None:
        with interruptible("ckpt dump"), Undo("the dump") as undo:
            undo.on_failure("thaw", lambda: (send(signal.SIGINT), undone.append("thawed")))
            send(signal.SIGTERM)

    with pytest.raises(Interrupted):
        dump()
    assert undone == ["thawed"]


def test_a_signal_during_an_undo_at_the_regular_end_is_not_taken_for_a_failure() -> None:
    undone: list[str] = []
    with interruptible("ckpt dump"), Undo("the dump") as undo:
        undo.always("thaw", lambda: (send(signal.SIGTERM), undone.append("thawed")))
    assert undone == ["thawed"]


def test_what_the_caller_ignores_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible("ckpt dump"):
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*words: str) -> int:
        monkeypatch.setattr("ckpt.cli.wiring.open_store", lambda _place: send(signal.SIGINT))
        return main(["list", *words])

    return call


def test_an_interrupted_command_gives_130(
    interrupted: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert interrupted() == 130
    assert capsys.readouterr().err.startswith("ckpt: ckpt list was interrupted")
    assert interrupted("--json") == 130
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "interrupted"
