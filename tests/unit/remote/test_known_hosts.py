"""Which lines of known_hosts files count."""

from __future__ import annotations

from pathlib import Path

from ckpt.remote.known_hosts import usable_lines

GOOD, BAD = "ssh-ed25519 AAAAgood", "ssh-ed25519 AAAAevil"


def test_a_revoked_key_is_known_nowhere_and_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    own.write_bytes(
        f"# a comment\n\nbox,10.0.0.1\t{GOOD} me@here\nbox {BAD}\n|1|c2FsdA==|aGFzaA== {GOOD}\n"
        f"@cert-authority *.example {GOOD}\nbox ssh-ed25519 AAA!\nbox ssh-ed25519\n".encode()
        + b"\xff\xfe\n@revoked\n"
    )
    system.write_text(f"@revoked * {BAD}\n")
    paths = (str(own), str(tmp_path / "none"), str(system))
    assert usable_lines(paths) == (f"box,10.0.0.1 {GOOD}", f"|1|c2FsdA==|aGFzaA== {GOOD}")
