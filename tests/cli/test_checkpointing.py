"""What the child that takes a checkpoint says to its supervisor."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from ckpt.cli import foreseeing
from ckpt.cli.checkpointing import Checkpointing, Foreseen, Order
from ckpt.model.supervision import Reason, Supervision
from ckpt.units import JobName


def test_whatever_is_to_be_told_comes_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPT_STATE", str(tmp_path))
    monkeypatch.setattr(foreseeing, "obstacles", lambda _job, _supervision: ("\U0001f600" * 10_000,) * 10)
    order = Order(
        job=JobName("web"),
        supervision=Supervision(store=str(tmp_path / "store")),
        reason=Reason.PERIODIC,
        only_looks=True,
    )
    process = Checkpointing.start(order)
    assert select.select([process.descriptor], [], [], 20)[0]
    said = process.receive()
    assert isinstance(said, Foreseen)
    assert len(said.obstacles) == 5
    assert process.receive() is None
