"""This host's key and its trust file: made once, changed with care, refused when others could have written them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.errors import CkptError, NoSpace, NoSuchTarget, ObjectCorrupt, OsRefused, Usage
from ckpt.store import guarded
from ckpt.store.keyring import KeyRing
from ckpt.store.publickey import TrustedKey, parse_public, to_base64
from ckpt.store.sealing import SigningKey, is_signed_by

ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, or mounts")


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(str(tmp_path / "state/keys"), own_comment="here")


@pytest.fixture
def trust_file(ring: KeyRing) -> Path:
    return Path(ring.trust_file)


def another(comment: str = "") -> TrustedKey:
    return TrustedKey(public=SigningKey.generate().public, comment=comment)


def test_the_key_is_made_on_first_use_and_stays(ring: KeyRing, trust_file: Path) -> None:
    assert (ring.made_key(), ring.trusted()) == (None, ())
    assert not trust_file.parent.exists()
    key = ring.signing_key()
    assert is_signed_by(ring.own_public, b"message", key.sign(b"message"))
    assert ring.signing_key().seed == key.seed
    assert ring.made_key() is not None


def test_a_new_key_is_trusted_by_its_own_host(ring: KeyRing) -> None:
    assert ring.trusted() == () != ring.own_key()
    assert ring.trusted() == (ring.own_key(),)
    assert ring.find(ring.own_public) == TrustedKey(public=ring.own_public, comment="here")


def test_an_own_key_that_was_taken_out_is_not_put_back(ring: KeyRing) -> None:
    ring.remove(ring.own_key().fingerprint)
    assert ring.signing_key().public == ring.own_public
    assert ring.trusted() == ()


def test_everything_is_private_whatever_the_umask_is(ring: KeyRing, trust_file: Path) -> None:
    before = os.umask(0)
    try:
        ring.signing_key()
    finally:
        os.umask(before)
    folder = trust_file.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "signing.key": 0o600,
        "trusted": 0o600,
        "lock": 0o600,
    }


def test_the_files_are_lines_that_people_can_read(ring: KeyRing, trust_file: Path) -> None:
    key = ring.signing_key()
    assert trust_file.with_name("signing.key").read_text() == f"ckpt-ed25519-private {to_base64(key.seed)}\n"
    lines = trust_file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1:] == [f"ckpt-ed25519 {to_base64(key.public)} here"]


def test_many_that_make_a_key_at_once_make_one(ring: KeyRing, trust_file: Path) -> None:
    code = f"""
import sys
from ckpt.store.keyring import KeyRing
ring = KeyRing({str(trust_file.parent)!r}, own_comment="here")
print("ready", flush=True)
sys.stdin.read()
print(ring.own_public.hex())
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    printed = {process.communicate(timeout=60)[0].strip() for process in started}
    assert printed == {ring.own_public.hex()}
    assert len(ring.trusted()) == 1


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_no_crash_leaves_a_key_that_its_host_does_not_trust(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    steps = 0
    real = {name: getattr(os, name) for name in ("rename", "fsync")}

    def step(name: str) -> None:
        def call(*arguments: object) -> None:
            nonlocal steps
            steps += 1
            if steps == at:
                raise KeyboardInterrupt
            real[name](*arguments)

        monkeypatch.setattr(os, name, call)

    for name in real:
        step(name)
    with pytest.raises(KeyboardInterrupt):
        ring.signing_key()
    monkeypatch.undo()
    made = ring.made_key()
    assert made is None or ring.find(made.public) is not None
    assert ring.find(ring.own_public) is not None


def test_what_a_writer_left_that_died_is_in_nobodys_way(ring: KeyRing, trust_file: Path) -> None:
    ring.signing_key()
    trust_file.with_name("trusted.new").write_text("half a li")
    ring.add(another().text)
    assert len(ring.trusted()) == 2
    assert not trust_file.with_name("trusted.new").exists()


def test_a_key_is_added_in_every_form_that_people_have(ring: KeyRing) -> None:
    keys = [another() for _ in range(5)]
    ring.add(keys[0].public, "by bytes")
    ring.add(keys[1].text)
    ring.add(to_base64(keys[2].public))
    ring.add(f"  {keys[3].text}\tweb 1 \n")
    ring.add(f"{keys[4].text} theirs", "ours")
    assert [key.public for key in ring.trusted()] == [key.public for key in keys]
    assert [key.comment for key in ring.trusted()] == ["by bytes", "", "", "web 1", "ours"]


def test_adding_twice_changes_nothing(ring: KeyRing, trust_file: Path) -> None:
    key = another("first")
    ring.add(key.text)
    before = trust_file.read_bytes()
    assert ring.add(key.public, "second") == key
    assert trust_file.read_bytes() == before


def test_what_the_operator_wrote_is_kept_byte_by_byte(ring: KeyRing, trust_file: Path) -> None:
    old, new, gone = another("old"), another("new"), another("gone")
    ring.add(old.text)
    written = f"# mine: \xe9\n\n\n   {old.text}  \n#{gone.text}\n".encode("latin-1")
    trust_file.write_bytes(written + gone.text.encode())  # no newline at the end
    ring.add(new.text)
    ring.remove(gone.fingerprint)
    assert trust_file.read_bytes() == written + f"{new.text}\n".encode()
    assert ring.trusted() == (old, new)


def test_a_key_is_removed_by_its_text_or_fingerprint_or_its_beginning(ring: KeyRing) -> None:
    keys = [another() for _ in range(4)]
    for key in keys:
        ring.add(key.text)
    assert ring.remove(f"{keys[0].text} a comment") == keys[0]
    assert ring.remove(to_base64(keys[1].public)) == keys[1]
    assert ring.remove(keys[2].fingerprint.upper()) == keys[2]
    assert ring.remove(keys[3].fingerprint[:6]) == keys[3]
    assert ring.trusted() == ()


def test_a_key_that_stands_twice_is_removed_twice(ring: KeyRing, trust_file: Path) -> None:
    key = another("once")
    ring.add(key.text)
    trust_file.write_text(f"{key.text}\n{key.key_text} again\n")
    ring.remove(key.fingerprint)
    assert ring.trusted() == ()


def test_a_fingerprint_is_the_beginning_of_the_digest(ring: KeyRing) -> None:
    key = another()
    assert key.fingerprint == sha256(key.public).hexdigest()[:16]


def test_removing_what_is_not_there_is_told(ring: KeyRing) -> None:
    for name in (another().text, "0123456789abcdef", "0123"):
        with pytest.raises(NoSuchTarget, match="There is no trusted key") as error:
            ring.remove(name)
        assert error.value.exit_code == 63


@pytest.mark.parametrize("name", ["", "012", "web1", "0123456789abcdef0", "ckpt-ed25519"])
def test_removing_what_is_no_name_of_a_key_is_told(ring: KeyRing, name: str) -> None:
    with pytest.raises(Usage, match="neither a public key nor"):
        ring.remove(name)


def test_a_beginning_that_two_keys_share_removes_none(ring: KeyRing) -> None:
    first = seeded(0)
    # A birthday: of 512 keys two share 4 of their digits with near certainty; which, is fixed by the seeds.
    known: dict[str, TrustedKey] = {}
    second = first
    for number in range(2000):
        key = seeded(number)
        if key.fingerprint[:4] in known:
            first, second = known[key.fingerprint[:4]], key
            break
        known[key.fingerprint[:4]] = key
    assert first.fingerprint != second.fingerprint
    ring.add(first.public)
    ring.add(second.public)
    with pytest.raises(Usage, match="2 trusted keys begin with"):
        ring.remove(first.fingerprint[:4])
    assert len(ring.trusted()) == 2


def seeded(number: int) -> TrustedKey:
    return TrustedKey(public=SigningKey.from_seed(number.to_bytes(32, "big")).public, comment="")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ckpt-ed25519",
        "ckpt-ed25519 AAAA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ",
        "A" * 44,  # 33 bytes
        "A" * 43,  # no padding
        "A" * 42 + "B=",  # not the one way to write it
        "!" + "A" * 42 + "=",
        "é" * 44,
        "A" * 100_000,
    ],
)
def test_text_that_is_no_key_is_told(ring: KeyRing, text: str) -> None:
    with pytest.raises(Usage, match="is no public key") as error:
        ring.add(text)
    assert len(error.value.message) < 200
    assert ring.trusted() == ()


def test_several_lines_are_no_key(ring: KeyRing) -> None:
    with pytest.raises(Usage):
        ring.add(f"{another().text}\n{another().text}")


def test_a_secret_key_is_not_taken_for_a_public_one_nor_shown(ring: KeyRing) -> None:
    seed = to_base64(SigningKey.generate().seed)
    with pytest.raises(Usage, match="secret half") as error:
        ring.add(f"ckpt-ed25519-private {seed}")
    assert seed[:8] not in error.value.message + error.value.advice


@pytest.mark.parametrize("comment", ["\x1b[31mred", "a\x00b", "x" * 201, "\x9b31m"])
def test_a_comment_can_do_nothing_to_a_terminal(ring: KeyRing, comment: str) -> None:
    with pytest.raises(Usage, match="comment"):
        ring.add(another().text, comment)
    with pytest.raises(Usage, match="comment"):
        parse_public(f"{another().text} {comment}")


def test_an_odd_host_name_is_no_obstacle(ring: KeyRing, trust_file: Path) -> None:
    odd = KeyRing(str(trust_file.parent), own_comment="a\nckpt-ed25519\x1b" + "x" * 300)
    assert [key.public for key in odd.trusted()] == [] != odd.own_key()
    assert [key.public for key in odd.trusted()] == [odd.own_public]


@pytest.mark.parametrize("line", ["nonsense", "ckpt-ed25519 AAAA web1", "ckpt-ed25519-private AAAA"])
def test_a_line_that_is_no_key_is_named_by_file_and_number(
    ring: KeyRing, trust_file: Path, line: str
) -> None:
    ring.signing_key()
    content = f"# comment\n\n{another().text}\n{line}\n"
    trust_file.write_text(content)
    for use in (ring.trusted, lambda: ring.add(another().text), lambda: ring.remove("0123")):
        with pytest.raises(ObjectCorrupt, match=rf"{trust_file} is damaged: line 4 "):
            use()
    assert trust_file.read_text() == content


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"ckpt-ed25519-private", b"ckpt-ed25519-private AAAA\n", b"\xff" * 80]
)
def test_a_damaged_signing_key_is_told_and_never_replaced(
    ring: KeyRing, trust_file: Path, content: bytes
) -> None:
    ring.signing_key()
    path = trust_file.with_name("signing.key")
    path.write_bytes(content)
    with pytest.raises(ObjectCorrupt, match=r"The signing key .* is damaged"):
        ring.signing_key()
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["signing.key", "trusted", "."])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_could_have_written_is_refused(
    ring: KeyRing, trust_file: Path, name: str, mode: int
) -> None:
    ring.signing_key()
    path = trust_file.parent / name
    path.chmod(mode | (0o700 if name == "." else 0))
    for use in uses(ring, name):
        with pytest.raises(OsRefused, match="others may write to it") as error:
            use()
        assert error.value.exit_code == 10
        assert "chmod go-" in error.value.advice


@needs_root
@pytest.mark.parametrize("name", ["signing.key", "trusted", "."])
def test_what_belongs_to_somebody_else_is_refused(ring: KeyRing, trust_file: Path, name: str) -> None:
    ring.signing_key()
    os.chown(trust_file.parent / name, 12345, -1)
    for use in uses(ring, name):
        with pytest.raises(OsRefused, match="it belongs to uid 12345"):
            use()


def uses(ring: KeyRing, name: str) -> tuple[object, ...]:
    sign, trust = ring.signing_key, ring.trusted
    change = lambda: ring.add(another().text)  # noqa: E731
    return {"signing.key": (sign,), "trusted": (trust, change), ".": (sign, trust, change)}[name]


def test_a_signing_key_that_others_can_read_is_refused(ring: KeyRing, trust_file: Path) -> None:
    ring.signing_key()
    trust_file.with_name("signing.key").chmod(0o640)
    with pytest.raises(OsRefused, match="others may read it"):
        ring.signing_key()
    assert len(ring.trusted()) == 1


def test_the_trust_file_is_no_secret(ring: KeyRing, trust_file: Path) -> None:
    ring.signing_key()
    trust_file.chmod(0o644)
    assert len(ring.trusted()) == 1


@pytest.mark.parametrize("name", ["signing.key", "trusted"])
def test_what_is_not_a_file_is_refused(ring: KeyRing, trust_file: Path, name: str, tmp_path: Path) -> None:
    ring.signing_key()
    path = trust_file.with_name(name)
    target = tmp_path / "elsewhere"
    path.rename(target)
    for make in (lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to(target)):
        make()
        with pytest.raises(OsRefused):
            ring.signing_key() if name == "signing.key" else ring.trusted()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_huge_trust_file_is_not_read(ring: KeyRing, trust_file: Path) -> None:
    ring.signing_key()
    os.truncate(trust_file, 1 << 40)
    with pytest.raises(OsRefused, match="longer than 1048576 bytes"):
        ring.trusted()


@needs_root
def test_another_user_cannot_use_the_keys(ring: KeyRing, trust_file: Path) -> None:
    ring.signing_key()
    code = f"""
import os; os.setuid(65534)
from ckpt.errors import OsRefused
from ckpt.store.keyring import KeyRing
try: KeyRing({str(trust_file.parent)!r}, own_comment="x").signing_key()
except OsRefused as error: print(error, error.advice)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import ckpt.store.keyring\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "Permission denied" in done.stdout
    assert "Run ckpt as root." in done.stdout


@needs_root
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "ckpt-test", str(small)], check=True)
    try:
        on_it = KeyRing(str(small / "keys"), own_comment="here")
        on_it.signing_key()
        before = on_it.trusted()
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={small}/filler", "bs=4k"], capture_output=True, check=False
        )
        with pytest.raises(NoSpace):
            on_it.add(another().text)
        assert on_it.trusted() == before
        assert sorted(os.listdir(small / "keys")) == ["lock", "signing.key", "trusted"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@needs_root
def test_a_read_only_disk_still_serves(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "ckpt-test", str(small)], check=True)
    try:
        on_it = KeyRing(str(small / "keys"), own_comment="here")
        key = on_it.signing_key()
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        assert on_it.signing_key().seed == key.seed
        with pytest.raises(OsRefused, match="Read-only"):
            on_it.add(another().text)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@given(st.text())
def test_any_text_is_a_key_or_is_refused(text: str) -> None:
    for given_text in (text, f"ckpt-ed25519 {text}", f"{seeded(1).key_text} {text}"):
        try:
            key = parse_public(given_text)
        except Usage:
            continue
        assert parse_public(key.text) == key


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_any_bytes_are_a_trust_file_or_are_refused(ring: KeyRing, trust_file: Path, content: bytes) -> None:
    ring.signing_key()
    for before in (b"", b"# ", seeded(1).text.encode() + b" "):
        trust_file.write_bytes(before + content)
        try:
            trusted = ring.trusted()
            ring.add(seeded(2).public)
        except ObjectCorrupt:
            continue
        assert ring.trusted() == (*trusted, seeded(2))


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(CkptError, match="File exists"):
        guarded.create(str(path), b"new")
    assert path.read_text() == "old"
