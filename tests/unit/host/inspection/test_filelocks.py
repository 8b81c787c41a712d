"""The text of /proc/locks as values."""

from __future__ import annotations

import os

from ckpt.host.inspection.filelocks import NO_PROCESS, parse_locks
from ckpt.units import Pid

TEXT = """\
1: POSIX  ADVISORY  WRITE 4242 fd:00:131 0 EOF
1: -> POSIX  ADVISORY  WRITE 4243 fd:00:131 0 EOF
2: FLOCK  ADVISORY  READ  17 00:1e:9 0 EOF
3: OFDLCK ADVISORY  WRITE -1 fd:00:132 128 255
4: LEASE  ACTIVE    READ  99 fd:00:133 0 EOF
5:
"""


def test_locks_that_are_held_are_read_and_waiters_are_not() -> None:
    posix, flock, ofd, lease = parse_locks(TEXT)
    assert (posix.holder, posix.device, posix.inode) == (Pid(4242), os.makedev(0xFD, 0), 131)
    assert posix.line == "POSIX ADVISORY WRITE 0 EOF"
    assert flock.device == os.makedev(0, 0x1E)
    assert (ofd.holder, ofd.line) == (NO_PROCESS, "OFDLCK ADVISORY WRITE 128 255")
    assert lease.is_lease
    assert not posix.is_lease


def test_no_locks_are_none() -> None:
    assert parse_locks("") == ()
