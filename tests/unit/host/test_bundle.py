"""What is sent to another host, and what the process there makes of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import FeatureMissing, OsRefused
from ckpt.host import bundle
from ckpt.host.bundle import Bundle
from ckpt.host.criu import locate
from ckpt.model.progress import UNWATCHED
from ckpt.remote import setup_process
from ckpt.remote.setup_process import MARK, Request

INIT = "ckpt-init-0123456789ab"
CHECKS = [{"name": "criu", "state": "ok", "detail": "it works", "remedy": ""}]

# The new ckpt, as far as its self-test goes.
MAIN = """
import json, os, sys
def main():
    assert sys.argv[1] == "doctor" and sys.flags.isolated and sys.flags.no_site
    print({answer!r})
    return 0
"""


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(
        prefix=str(tmp_path / "opt"),
        init_place=str(tmp_path / "libexec/ckpt-init"),
        command=str(tmp_path / "bin/ckpt"),
        version="1.2.3",
        digest="",
        init_name=INIT,
        force=False,
        dry_run=False,
    )


def small(*, answer: str = json.dumps({"checks": CHECKS}), more: str = "") -> Bundle:
    files = {
        "lib/ckpt/__init__.py": "",
        "lib/ckpt/cli/__init__.py": "",
        "lib/ckpt/cli/main.py": MAIN.format(answer=answer),
        f"libexec/{INIT}": "#!/bin/sh\n",
        "lib/more.txt": more,
    }
    made = [
        replace(bundle._content(path, text.encode()), is_executable=INIT in path)
        for path, text in files.items()
    ]
    return Bundle(
        version="1.2.3",
        criu_version="4.2",
        init_name=INIT,
        files=tuple(sorted(made, key=lambda file: file.path)),
    )


def packed(what: Bundle) -> bytes:
    pieces: list[bytes] = []
    what.send(pieces.append, UNWATCHED)
    return b"".join(pieces)


def install(request: Request, what: Bundle, content: bytes | None = None) -> list[dict[str, Any]]:
    """Run the process as the other host does; gives what it says."""
    asked = json.dumps(asdict(replace(request, digest=what.digest))).encode() + b"\n"
    done = subprocess.run(
        [sys.executable, "-IS", setup_process.__file__],
        check=False,
        capture_output=True,
        input=asked + (packed(what) if content is None else content),
        timeout=60,
    )
    assert done.stderr == b""
    return [json.loads(line.removeprefix(MARK)) for line in done.stdout.decode().splitlines()]


def tree(folder: Path) -> Mapping[str, object]:
    """What is in the folder but the lock, which stays."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.stat().st_ino
        for path in folder.rglob("*")
        if path.name != "setup.lock" and "__pycache__" not in path.parts
    }


def test_what_is_sent_arrives_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(3_000_000))
    big = bundle._file("criu/lib/big", str(tmp_path / "source"))
    sent = replace(small(), files=(big, *small().files))
    assert setup_process.unpack(io.BytesIO(packed(sent)), str(tmp_path / "there")) == sent.digest
    assert (tmp_path / "there/criu/lib/big").read_bytes() == (tmp_path / "source").read_bytes()
    assert os.access(tmp_path / f"there/libexec/{INIT}", os.X_OK)
    assert not (tmp_path / "there/lib/more.txt").stat().st_mode & 0o111


def test_a_file_that_becomes_shorter_ends_it(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    file = bundle._file("lib/x", str(tmp_path / "source"))
    (tmp_path / "source").write_bytes(bytes(10))
    with pytest.raises(OsRefused, match=str(tmp_path / "source")):
        packed(replace(small(), files=(file,)))


def test_this_machine_can_be_bundled() -> None:
    found = bundle.collect()
    paths = {file.path for file in found.files}
    assert {
        "lib/ckpt/cli/main.py",
        "lib/ckpt/cli/page/report.js",
        "lib/click/__init__.py",
        "criu/lib/criu.bin",
    } <= paths
    assert any(path.startswith("lib/pycriu/") for path in paths)
    assert f"libexec/{found.init_name}" in paths
    # Neither what tests and checks need, nor what Python makes by itself.
    assert not [path for path in paths if path.startswith(("lib/pytest", "lib/mypy", "lib/pip"))]
    assert not [path for path in paths if "__pycache__" in path or ".." in path]


def test_a_criu_that_needs_this_hosts_libraries_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    criu = tmp_path / "bin/criu"
    criu.parent.mkdir()
    criu.touch()
    monkeypatch.setattr(locate, "find_criu", lambda: criu)
    with pytest.raises(FeatureMissing, match=str(criu)) as caught:
        bundle.collect()
    assert "--force-criu" in caught.value.advice


def test_a_release_is_installed_once_and_anew_when_it_changed(request_: Request, tmp_path: Path) -> None:
    first, second, third = (small(more=text) for text in ("one", "two", "three"))
    said = install(request_, first)
    assert said[0] == {"was": None, "up_to_date": False, "init": ""}
    assert said[-1]["checks"] == CHECKS
    current = tmp_path / "opt/current"
    assert os.readlink(tmp_path / "libexec/ckpt-init") == INIT
    assert os.readlink(tmp_path / "bin/ckpt") == f"{current}/bin/ckpt"
    assert json.loads((current / "lib/setup.json").read_text())["digest"] == first.digest
    before = tree(tmp_path)
    [standing] = install(request_, first, b"")
    assert standing["up_to_date"]
    assert tree(tmp_path) == before

    install(request_, second)
    assert (current / "lib/more.txt").read_text() == "two"
    said = install(request_, third)
    assert said[0]["was"] == {"version": "1.2.3", "digest": second.digest}
    # The one before is kept, and no older one.
    kept = sorted((path / "lib/more.txt").read_text() for path in (tmp_path / "opt/versions").iterdir())
    assert kept == ["three", "two"]


def test_a_release_that_a_process_uses_is_kept(request_: Request, tmp_path: Path) -> None:
    install(request_, small(more="0"))
    used = os.readlink(tmp_path / "opt/current")
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, used], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for more in "123":
            install(request_, small(more=more))
        assert os.path.isdir(used)
        process.communicate()
    install(request_, small(more="4"))
    assert not os.path.exists(used)


@pytest.mark.parametrize("former", [False, True], ids=["nothing before", "a former release"])
@pytest.mark.parametrize("fault", ["cut", "cut at a file", "damaged", "other files", "lacking", "broken"])
def test_whatever_goes_wrong_what_was_there_is_as_it_was(
    fault: str, request_: Request, tmp_path: Path, *, former: bool
) -> None:
    for folder in ("opt/versions", "libexec"):
        (tmp_path / folder).mkdir(parents=True)
    if former:
        install(request_, small(more="former"))
    before = tree(tmp_path)
    what = small(more="x" * 100_000)
    content = packed(what)
    match fault:
        case "cut":
            content = content[: len(content) // 2]
        case "cut at a file":
            content = packed(replace(what, files=what.files[:2]))
        case "damaged":
            content = content[:20] + bytes(20) + content[40:]
        case "other files":
            content = packed(small(more="others"))
        case "lacking":
            missing = {"name": "cgroups", "state": "missing", "detail": "no freezer", "remedy": "Mount it."}
            what = small(answer=json.dumps({"checks": [*CHECKS, missing]}))
            content = packed(what)
        case _:
            what = small(answer="nonsense")
            content = packed(what)
    failed = install(request_, what, content)[-1]
    assert failed["failed"]
    assert tree(tmp_path) == before
    if fault == "lacking":
        assert failed == {
            "failed": "the host lacks what ckpt needs: cgroups: no freezer",
            "remedy": "Mount it.",
        }


def test_a_dry_run_changes_nothing(request_: Request, tmp_path: Path) -> None:
    [standing] = install(replace(request_, dry_run=True), small(), b"")
    assert not standing["up_to_date"]
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_not_ours_stays(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ckpt").write_text("mine")
    [failed] = install(request_, small())
    assert "bin/ckpt" in failed["failed"]
    assert (tmp_path / "bin/ckpt").read_text() == "mine"


def test_two_at_once_are_refused(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    with setup_process._locked(str(tmp_path / "opt/setup.lock")):
        [failed] = install(request_, small())
    assert "another set-up" in failed["failed"]


def test_a_connection_that_says_nothing_more_ends_it(request_: Request, tmp_path: Path) -> None:
    what = small(more="x" * 100_000)
    source = (
        Path(setup_process.__file__).read_text().replace("SILENCE_S: Final = 120", "SILENCE_S: Final = 1")
    )
    (tmp_path / "impatient.py").write_text(source)
    with subprocess.Popen(
        [sys.executable, "-IS", tmp_path / "impatient.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked = json.dumps(asdict(replace(request_, digest=what.digest))).encode() + b"\n"
        process.stdin.write(asked + packed(what)[:200])
        process.stdin.flush()
        said = process.stdout.read()
    assert b"nothing came for 1 s" in said
    assert list((tmp_path / "opt/versions").iterdir()) == []


def test_an_init_of_the_same_name_is_not_replaced(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "libexec").mkdir()
    other = b"#!/bin/sh\n# another\n"
    (tmp_path / "libexec" / INIT).write_bytes(other)
    said = install(request_, small())
    assert said[-1]["checks"] == CHECKS
    # Who asked is told, and can compare.
    assert said[0]["init"] == hashlib.sha256(other).hexdigest()
    assert (tmp_path / "libexec" / INIT).read_bytes() == other
