"""Pins that cannot be made: the checkpoint is durable by then, and stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import Interrupted
from ckpt.host.inodes import ladder
from ckpt.units import CheckpointId


def test_an_interruption_is_not_said_to_have_undone_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted(operation="the checkpoint")

    monkeypatch.setattr(ladder.Pins, "pin", interrupted)
    told = ladder.HostInodes(str(tmp_path), str(tmp_path)).pin(CheckpointId("0" * 64), ())
    assert told == ("no inode was pinned: it was interrupted",)
