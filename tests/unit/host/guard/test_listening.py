"""The listening socket of a service: made at a path, or passed by systemd."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from ckpt.errors import OsRefused, Usage, WrongState
from ckpt.host.guard.listening import listening


def test_a_socket_is_for_its_owner_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "made" / "hook"
    with listening(str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_socket_that_nobody_listens_at_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    with listening(str(path)):
        with pytest.raises(WrongState, match=f"The socket {path} is in use"), listening(str(path)):
            pass
        assert path.exists()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    path.write_text("precious")
    with pytest.raises(OsRefused, match="Could not listen at"), listening(str(path)):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(OsRefused, match="too long"), listening(str(tmp_path / ("x" * 200))):
        pass


def test_what_was_passed_to_another_process_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with listening(str(tmp_path / "hook")) as listener:
        assert listener.getsockname() == str(tmp_path / "hook")
    assert "LISTEN_FDS" not in os.environ


def test_more_than_one_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with (
        pytest.raises(Usage, match="systemd passed 2 sockets"),
        listening(str(tmp_path / "hook")),
    ):
        pass
