"""The end of the way of the pages that asks for them."""

from __future__ import annotations

import threading
from pathlib import Path

from harness.waiting import await_condition

from ckpt.errors import PeerFailed
from ckpt.host.lazy.keeper import Keeper
from ckpt.host.lazy.wire import Frame, Kind, packed

ALIVE = packed(Frame(kind=Kind.ALIVE))
MANY = 1000


class Flood:
    """A source that reads nothing, and says that it is alive as fast as it is heard. Fits Link."""

    host = "the source"

    def __init__(self) -> None:
        self.said = 0
        self.is_much = threading.Event()
        self.reads = threading.Event()

    def read_into(self, into: memoryview) -> None:
        into[:] = ALIVE
        self.said += 1
        if self.said > MANY:
            self.is_much.set()

    def write(self, _content: bytes | memoryview) -> None:
        assert self.reads.wait(20)
        raise PeerFailed(host=self.host, reason="it has enough")


def test_what_a_source_says_that_does_not_listen_is_not_collected(tmp_path: Path) -> None:
    flood, ended = Flood(), []
    keeper = Keeper(str(tmp_path / "pages"), flood, silence_s=20)
    thread = threading.Thread(target=lambda: ended.append(keeper.run()))
    thread.start()
    try:
        await_condition(lambda: flood.said > 1, "the keeper to listen")
        assert not flood.is_much.wait(0.3)
    finally:
        flood.reads.set()
        thread.join(20)
    assert ended == ["it has enough"]
