"""Where volumes may be mounted, their numbers and sizes, and the list of them; without a kernel's help."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from ckpt.cli.parameters import volume
from ckpt.errors import ObjectCorrupt
from ckpt.host.volumes import changing, loop
from ckpt.host.volumes.book import Book, VolumeRecord
from ckpt.host.volumes.places import missing_directories, refuse_place
from ckpt.units import JobName

JOB = JobName("web")


def refusal(place: object, state: object = "/var/lib/ckpt", **more: tuple[str, ...]) -> str:
    return refuse_place(str(place), state=str(state), taken=more.get("taken", ()), own=more.get("own", ()))


@pytest.mark.parametrize(
    "place",
    [
        "/",
        "/proc",
        "/sys/fs/x",
        "/dev/shm/x",
        "/usr/local/x",
        "/etc/cron.d",
        "/var/lib/ckpt",
        "/var/lib",
        "/lib64",
    ],
)
def test_no_volume_covers_what_the_host_lives_of(place: str) -> None:
    assert refusal(place)


@pytest.mark.parametrize(
    "place", ["", "data", "//data", "/data/", "/data/../etc", "/data/./x", "/da\nta", "/" + "x" * 2000]
)
def test_a_path_that_is_not_plain_is_no_place(place: str) -> None:
    assert refusal(place)


def test_a_place_is_missing_or_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert refusal(tmp_path / "empty") == ""
    assert refusal(tmp_path / "missing" / "below") == ""
    assert "there are files" in refusal(tmp_path / "full")
    assert "not a directory" in refusal(tmp_path / "full" / "file")
    assert "symbolic link" in refusal(tmp_path / "link")
    assert "symbolic link" in refusal(tmp_path / "link" / "below")
    assert "cover ckpt's own files" in refusal(tmp_path / "empty", tmp_path / "empty" / "state")
    assert "cover ckpt's own files" in refusal(tmp_path / "empty" / "x", tmp_path / "empty")


def test_volumes_do_not_lie_in_one_another(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    assert refusal(place, taken=(place,))
    assert refusal(f"{place}/below", taken=(place,))
    assert refusal(place, taken=(f"{place}/below",))
    assert refusal(place, taken=(f"{place}-2",)) == ""


def test_the_number_follows_from_the_name_and_the_place_and_is_one_of_ours() -> None:
    number = loop.number_for(JOB, "/srv/data")
    assert number == loop.number_for(JOB, "/srv/data")
    assert len({number, loop.number_for(JOB, "/srv/other"), loop.number_for(JobName("db"), "/srv/data")}) == 3
    assert loop.is_ours(number)
    assert os.minor(number) < 1 << 20
    assert not loop.is_ours(loop.os_device(7))


def test_what_the_user_writes_is_a_place_and_perhaps_a_size() -> None:
    assert volume("/srv/data") == ("/srv/data", None)
    assert volume("/srv/data/:512M") == ("/srv/data", 512 << 20)
    assert volume("/srv/12:30/x") == ("/srv/12:30/x", None)
    for wrong in ("data", "data:1G", "/srv/data:much", "/srv/data:"):
        with pytest.raises(click.BadParameter):
            volume(wrong)


def test_only_what_was_missing_is_made(tmp_path: Path) -> None:
    assert missing_directories(str(tmp_path)) == ()
    assert missing_directories(str(tmp_path / "a" / "b")) == (str(tmp_path / "a"), str(tmp_path / "a" / "b"))


def a_record(tmp_path: Path) -> VolumeRecord:
    return VolumeRecord(
        mountpoint=str(tmp_path / "data"),
        filesystem="ext4",
        image="0.img",
        device=loop.number_for(JOB, str(tmp_path / "data")),
        made=(str(tmp_path / "data"),),
    )


def test_the_list_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    book = Book(str(tmp_path))
    assert book.of(JOB) == ()
    book.write(book.make_new(JOB), (a_record(tmp_path),))
    assert book.jobs() == ()
    book.move(book.new(JOB), book.directory(JOB))
    assert book.of(JOB) == (a_record(tmp_path),)
    assert book.jobs() == (JOB,)
    path = Path(book.directory(JOB), "volumes.json")
    for damaged in ("", "[]", path.read_text().replace("0.img", "../0.img")):
        path.write_text(damaged)
        with pytest.raises(ObjectCorrupt):
            book.of(JOB)


@pytest.mark.parametrize("reached", ["noted", "new", "aside", "placed"])
def test_a_change_that_stopped_anywhere_is_taken_back(reached: str, tmp_path: Path) -> None:
    book = Book(str(tmp_path))
    former = book.make_new(JOB)
    book.write(former, (a_record(tmp_path),))
    Path(former, "0.img").write_text("former")
    book.move(former, book.directory(JOB))
    step = changing.step_for(str(tmp_path), JOB)
    if reached != "noted":
        new = book.make_new(JOB)
        book.write(new, (a_record(tmp_path),))
        Path(new, "0.img").write_text("new")
    if reached in {"aside", "placed"}:
        book.move(book.directory(JOB), book.old(JOB))
    if reached == "placed":
        book.move(book.new(JOB), book.directory(JOB))

    for _ in range(2):
        changing.take_back(step)
        assert Path(book.directory(JOB), "0.img").read_text() == "former"
        assert os.listdir(tmp_path / "volumes") == [JOB]


def test_what_is_settled_stays_and_nothing_else_does(tmp_path: Path) -> None:
    book = Book(str(tmp_path))
    for content, place in (("former", book.old(JOB)), ("new", book.directory(JOB))):
        directory = book.make_new(JOB)
        book.write(directory, (a_record(tmp_path),))
        Path(directory, "0.img").write_text(content)
        book.move(directory, place)
    changing.settle(str(tmp_path), JOB)
    assert Path(book.directory(JOB), "0.img").read_text() == "new"
    assert os.listdir(tmp_path / "volumes") == [JOB]
