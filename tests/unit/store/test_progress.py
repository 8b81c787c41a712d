"""What a store tells of bytes as they move."""

from __future__ import annotations

from pathlib import Path

from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import write
from fakes.progress import Watching
from fakes.values import a_page, touched

from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.store.store import Store
from ckpt.store.transferring import transfer

CONFIG = StoreConfig(id=digest_of(b""), signatures_required=False, encryption=None)
PAGES = [a_page(number) for number in range(600)]
FILES = {"pages-1.img": b"".join(PAGES) + b"the end", "zeros": bytes(3 << 20), "empty": b""}
BYTES = sum(map(len, FILES.values()))


def opened(disk: Disk) -> tuple[Store, Watching]:
    store, watching = Store(MemoryBackend(disk), CONFIG, config_version=2), Watching()
    store.progress = watching
    return store, watching


def test_every_byte_of_a_file_is_told_when_it_is_stored_fetched_and_streamed(tmp_path: Path) -> None:
    store, watching = opened(Disk())
    checkpoint, _ = write(store, FILES)
    assert watching.done == BYTES

    files = store.load(checkpoint).checkpoint.files
    watching.done = 0
    for file in files:
        store.fetch(checkpoint, file, str(tmp_path / "fetched"))
    assert watching.done == BYTES
    watching.done = 0
    for file in files:
        assert sum(map(len, store.stream(checkpoint, file))) == file.size_bytes
    assert watching.done == BYTES


def test_a_verification_expects_all_files_and_passes_what_was_checked_before() -> None:
    disk = Disk()
    first, _ = write(opened(disk)[0], FILES)
    changed = [touched(page, 1) for page in PAGES[:50]] + PAGES[50:]
    write(opened(disk)[0], FILES | {"pages-1.img": b"".join(changed)}, parent=first, created_ns=2)
    store, watching = opened(disk)
    assert store.verify(None).problems == ()
    assert watching.done == watching.expected == 2 * BYTES - len(b"the end")


def test_a_verification_of_damage_comes_to_its_end_too() -> None:
    disk = Disk()
    write(opened(disk)[0], FILES)
    for name in [name for name in disk.objects if name.startswith("packs/")]:
        del disk.objects[name]
    store, watching = opened(disk)
    assert store.verify(None).problems
    assert watching.done == watching.expected == BYTES


def test_a_transfer_and_a_repacking_tell_as_much_as_they_expect() -> None:
    disk = Disk()
    source, _ = opened(disk)
    big, _ = write(source, FILES)
    small = {"pages-1.img": b"".join(PAGES[:20])}
    write(source, small, parent=big, created_ns=2)

    target, watching = opened(Disk())
    transfer(source, target, big)
    assert watching.done == watching.expected == BYTES

    store, watching = opened(disk)
    assert store.remove((big,)).repacked_bytes
    assert watching.done == watching.expected == len(small["pages-1.img"])


def test_who_does_not_watch_costs_no_second_reading_of_manifests() -> None:
    disk = Disk()
    write(opened(disk)[0], FILES)
    store, watching = opened(disk)
    watching.is_watched = False
    store.verify(None)
    assert watching.expected == 0
