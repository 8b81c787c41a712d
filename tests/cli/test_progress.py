"""Progress as people see it on a terminal, and as programs read it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint
from fakes.progress import Watching
from harness.terminal import Terminal

from ckpt.cli.bar import amount_of
from ckpt.cli.expecting import expecting_dump, expecting_restore
from ckpt.cli.output import Output
from ckpt.cli.progress import Standing, telling
from ckpt.cli.wiring import open_store
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.reports import StoredCheckpoint
from ckpt.units import ByteCount, CheckpointId

PROGRAM = Path(sys.executable).with_name("ckpt")
IMAGE_BYTES = 24 << 20
LAST_BYTES = 1 << 20


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CKPT_") and name != "NO_COLOR"
    }
    return kept | {
        "TERM": "xterm",
        "CKPT_STATE": str(tmp_path / "state"),
        "CKPT_STORE": str(tmp_path / "store"),
    }


@pytest.fixture
def stored(tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> CheckpointId:
    """A checkpoint with one image file that cannot be compressed, signed by this host."""
    monkeypatch.setenv("CKPT_STATE", environ["CKPT_STATE"])
    images = tmp_path / "pages-1.img"
    images.write_bytes(random.Random(1).randbytes(IMAGE_BYTES))
    checkpoint = a_checkpoint()
    with open_store(environ["CKPT_STORE"]).writer() as writer:
        file = writer.add_file(str(images), "pages-1.img")
        sets = (replace(checkpoint.image_sets[0], files=(file,)),)
        return writer.commit(replace(checkpoint, image_sets=sets))


def run(environ: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(words, env=environ, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def import_in_the_middle(
    environ: dict[str, str], archive: Path, terminal: Terminal, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """An import that waits for the end of the archive, which it gets at the end."""
    content = archive.read_bytes()
    process = subprocess.Popen(
        [str(PROGRAM), "import", "-", *options],
        env=environ | {"CKPT_STORE": f"{environ['CKPT_STORE']}-2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal.program,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(content[:-LAST_BYTES])
        process.stdin.flush()
        yield process
        if process.poll() is None:
            process.stdin.write(content[-LAST_BYTES:])
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()
        terminal.finish()


@pytest.fixture
def archive(environ: dict[str, str], stored: CheckpointId, tmp_path: Path) -> Path:
    place = tmp_path / "archive"
    assert run(environ, "export", stored, place).returncode == 0
    return place


def test_a_terminal_sees_a_bar_with_bytes_that_is_gone_at_the_end(
    environ: dict[str, str], archive: Path
) -> None:
    terminal = Terminal()
    with import_in_the_middle(environ, archive, terminal) as process:
        terminal.await_text("reading the archive")
        terminal.await_text("MiB of 24.0 MiB")
        terminal.await_text("/s  0:0")
        lines, is_shown = terminal.screen()
        assert len(lines) == 1
        assert len(lines[0]) < 80
        assert not is_shown
    assert process.returncode == 0
    assert terminal.screen() == ([], True)


def test_a_terminal_is_clean_after_ctrl_c(environ: dict[str, str], archive: Path) -> None:
    terminal = Terminal()
    with import_in_the_middle(environ, archive, terminal) as process:
        terminal.await_text("reading the archive")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert process.returncode == 130
    lines, is_shown = terminal.screen()
    assert [line[:24] for line in lines] == ["ckpt: ckpt import was in"]
    assert is_shown


def test_a_quiet_call_shows_no_bar(environ: dict[str, str], archive: Path) -> None:
    terminal = Terminal()
    with import_in_the_middle(environ, archive, terminal, "-q") as process:
        pass
    assert process.returncode == 0
    assert terminal.written == ""


def test_a_pipe_sees_nothing(environ: dict[str, str], stored: CheckpointId) -> None:
    assert run(environ, "verify").stderr == ""


@pytest.mark.parametrize("words", [["--json-progress", "verify"], ["verify", "--json-progress", "--json"]])
def test_events_are_json_and_their_bytes_rise_to_the_total(
    words: list[str], environ: dict[str, str], stored: CheckpointId
) -> None:
    done = run(environ, *words)
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["phase", "done"]
    assert all(list(event) == ["event", "phase", "bytes", "total_bytes", "elapsed_ms"] for event in events)
    for key in ("bytes", "elapsed_ms"):
        assert [event[key] for event in events] == sorted(event[key] for event in events)
    assert {event["total_bytes"] for event in events[1:]} == {IMAGE_BYTES}
    assert events[-1]["bytes"] == IMAGE_BYTES
    assert len(events) <= 4 + events[-1]["elapsed_ms"] / 100


@pytest.mark.parametrize(
    "words",
    [
        ("export", "REF", "HERE/out"),
        ("export", "--format", "podman", "REF", "HERE/out"),
        ("push", "REF", "HERE/other"),
    ],
    ids=" ".join,
)
def test_whatever_moves_bytes_tells_of_all_of_them(
    words: tuple[str, ...], environ: dict[str, str], stored: CheckpointId, tmp_path: Path
) -> None:
    there = {"REF": str(stored)}
    given = [there.get(word, word.replace("HERE", str(tmp_path))) for word in words]
    done = run(environ, "--json-progress", *given)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["bytes"], last["total_bytes"]) == ("done", IMAGE_BYTES, IMAGE_BYTES)


def test_an_import_a_prune_and_a_failure_tell_events_too(
    environ: dict[str, str], archive: Path, tmp_path: Path
) -> None:
    other = environ | {"CKPT_STORE": str(tmp_path / "other")}
    last = json.loads(run(other, "--json-progress", "import", archive).stderr.splitlines()[-1])
    assert (last["event"], last["bytes"], last["total_bytes"]) == ("done", IMAGE_BYTES, IMAGE_BYTES)
    done = run(other, "--json-progress", "prune", "--keep-last", "1")
    assert [json.loads(line)["phase"] for line in done.stderr.splitlines()][-1] == "freeing space"
    done = run(other, "--json-progress", "--json", "rm", "nonsense")
    assert done.returncode == 41
    assert json.loads(done.stdout)["error"]["slug"] == "missing"
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["failed"]


def test_a_reader_of_events_that_is_gone_does_not_hurt(environ: dict[str, str], stored: CheckpointId) -> None:
    here, there = os.pipe()
    os.close(here)
    words = [str(PROGRAM), "verify", "--json-progress"]
    # Without a buffer there is nothing that Python could not flush at its end.
    environ.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(words, env=environ, stdout=subprocess.PIPE, stderr=there, check=False, timeout=60)
    os.close(there)
    assert done.returncode == 0


def test_warnings_are_events_where_events_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=False, verbose=True, json_progress=True)
    output.warn("careful")
    output.note("by the way")
    assert [json.loads(line) for line in capsys.readouterr().err.splitlines()] == [
        {"event": "warning", "message": "careful"},
        {"event": "note", "message": "by the way"},
    ]


def test_what_was_read_twice_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    with telling(Output(json=False, json_progress=True)) as tell:
        tell("reading")
        tell.expect(10)
        tell.moved(8)
        tell.moved(8)
        tell("reading")
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["bytes"], last["total_bytes"]) == (10, 10)


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        ((0, None, 61.2, 0.1), "1:01"),
        ((1 << 20, None, 3.0, 2.0), "1.0 MiB  512.0 KiB/s  0:03"),
        ((1 << 20, 4 << 20, 0.1, 0.1), "1.0 MiB of 4.0 MiB  0:00"),
    ],
)
def test_the_bar_tells_what_is_known(standing: tuple[int, int | None, float, float], words: str) -> None:
    done, total, elapsed, phase = standing
    shown = Standing(phase="x", done_bytes=done, total_bytes=total, elapsed_s=elapsed, phase_s=phase)
    assert amount_of(shown) == words


def test_the_bar_estimates_what_is_left_where_it_knows() -> None:
    half = Standing(phase="x", done_bytes=1 << 30, total_bytes=3 << 30, elapsed_s=70, phase_s=10)
    assert amount_of(half, with_rest=True) == "1.0 GiB of 3.0 GiB  102.4 MiB/s  20 s left  1:10"
    unknown = dataclasses.replace(half, total_bytes=None)
    assert amount_of(unknown, with_rest=True) == "1.0 GiB  102.4 MiB/s  1:10"


class Kept:
    """Of a dumper, a store and a writer what is asked here."""

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint

    def image_files(self, images: str) -> tuple[str, ...]:
        return tuple(sorted(os.listdir(images)))

    @contextmanager
    def writer(self, parent: object) -> Iterator[Kept]:
        yield self

    def add_file(self, *arguments: object) -> None: ...
    def commit(self, checkpoint: object) -> None: ...
    def fetch(self, *arguments: object) -> None: ...

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        assert self.checkpoint is not None
        return StoredCheckpoint(id=checkpoint, checkpoint=self.checkpoint, tags=(), stored_bytes=ByteCount(0))


def test_a_dump_expects_the_images_of_a_tree_at_once_and_other_files_when_they_come(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.img").write_bytes(b"12")
    (images / "b.img").write_bytes(b"345")
    (tmp_path / "saved").write_bytes(b"6789")
    told, kept = Watching(), Kept()
    both: Any = expecting_dump(kept, kept, told)  # type: ignore[arg-type]
    dumper, store = both
    with store.writer(None) as writer:
        for name in dumper.image_files(str(images)):
            writer.add_file(f"{images}/{name}", name, ())
        writer.add_file(str(tmp_path / "saved"), "saved")
        writer.commit(None)
    assert told.heard == ["storing the images", 5, "storing files", 4, "making it durable"]


def test_a_restore_expects_the_images_at_once_and_other_files_when_they_come() -> None:
    checkpoint = a_checkpoint()
    first = StoredFile(name="a.img", size_bytes=ByteCount(2), mode=0o600, root="00" * 32)  # type: ignore[arg-type]
    second, other = (replace(first, name=name, size_bytes=ByteCount(3)) for name in ("b.img", "saved"))
    images = replace(checkpoint.image_sets[0], files=(first, second))
    told = Watching()
    store: Any = expecting_restore(Kept(replace(checkpoint, image_sets=(images,))), told)  # type: ignore[arg-type]
    store.load("id")
    for file in (other, first, second):
        store.fetch("id", file, "path")
    assert told.heard == ["opening the checkpoint", "reading files", 3, "reading the images", 5]
