"""An encrypted store tells nothing to who reads the disk, and takes nothing from who writes to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import a_checkpoint, add, read, write
from fakes.trust import OwnKey
from fakes.values import a_page, a_plain_page, touched

from ckpt.codec.objects import CONFIG, RootDigest, digest_of
from ckpt.codec.records import Encryption, StoreConfig
from ckpt.errors import FormatUnknown, ObjectCorrupt, WrongKey, WrongState
from ckpt.store import upgrading
from ckpt.store.opening import Keys, open_store
from ckpt.store.sealing import wrap
from ckpt.store.store import Store
from ckpt.store.upgrading import encryption_of, put_config
from ckpt.units import CHUNK_BYTES, CheckpointId, Tag

SECRET, OTHER = b"a secret", b"another secret"
COST = 10  # what it takes is not under test
MASTER = bytes(range(32))
TRUST = OwnKey()

MARK = b"the workload's secret, which must never be on the disk"
PAGES = [a_plain_page(number)[: -len(MARK)] + MARK for number in range(8)] + [
    a_page(number) for number in range(8)
]
FILES = {"pages-1.img": b"".join(PAGES), "core-1.img": MARK * 3}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrading, "wrap", lambda secret, master: wrap(secret, master, kdf_cost_log2=COST))


def config_with(encryption: Encryption | None) -> StoreConfig:
    return StoreConfig(id=digest_of(b""), signatures_required=False, encryption=encryption)


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    put_config(MemoryBackend(disk), config_with(encryption_of(wrap(SECRET, MASTER, kdf_cost_log2=COST))))
    return disk


def opened(disk: Disk, secret: bytes | None = SECRET) -> Store:
    return open_store(
        MemoryBackend(disk),
        create=False,
        keys=Keys(secret=lambda: secret, is_named=secret is not None, trust=TRUST),
    )


def filled(disk: Disk) -> tuple[CheckpointId, CheckpointId]:
    """Two checkpoints, the second a child of the first, and a tag."""
    first, _ = write(opened(disk), FILES)
    changed = b"".join([touched(page, 1) for page in PAGES[:12]] + PAGES[12:])
    second, _ = write(opened(disk), FILES | {"pages-1.img": changed}, parent=first, created_ns=2)
    opened(disk).tag(second, Tag("stable"))
    return first, second


def named(disk: Disk, beginning: str) -> list[str]:
    return sorted(name for name in disk.objects if name.startswith(beginning))


def test_nothing_of_the_contents_is_in_any_file(disk: Disk) -> None:
    filled(disk)
    secrets = [MARK[:16], *(page[place : place + 16] for page in PAGES for place in (0, 1000, 4000))]
    secrets += [b"pages-1.img", b"before the upgrade", b"forge", b"/usr/bin/sleep"]  # of the manifest
    for name, content in disk.objects.items():
        assert not [secret for secret in secrets if secret in content], name


def test_no_digest_of_a_page_or_a_file_is_in_any_file_or_name(disk: Disk) -> None:
    """Who has a page could look whether it is there: not even the first bytes of a digest may show."""
    filled(disk)
    digests = [hashlib.sha256(page).digest() for page in [*PAGES, *(touched(page, 1) for page in PAGES)]]
    digests += [hashlib.sha256(content).digest() for content in FILES.values()]
    root = RootDigest(len(FILES["pages-1.img"]))
    root.add(b"".join(digests[: len(PAGES)]))
    digests.append(bytes.fromhex(root.root()))
    for name, content in disk.objects.items():
        for digest in digests:
            assert digest[:6] not in content, name
            assert digest.hex()[:12] not in name


def test_the_same_pages_give_other_bytes_in_every_store_and_every_time() -> None:
    seen: set[bytes] = set()
    for number in range(3):
        disk = Disk()
        master = bytes([number]) * 32
        put_config(MemoryBackend(disk), config_with(encryption_of(wrap(SECRET, master, kdf_cost_log2=COST))))
        write(opened(disk), FILES)
        new = {content[64:] for name, content in disk.objects.items() if name.startswith(("packs", "index"))}
        assert seen.isdisjoint(new)
        seen |= new


def test_it_is_a_store_like_any_other(disk: Disk) -> None:
    first, second = filled(disk)
    store = opened(disk)
    assert store.is_encrypted
    assert store.statistics().encrypted
    assert read(store, first) == FILES
    _, new = write(store, {"x": b"".join(PAGES)}, job="other", created_ns=3)
    assert new == 0  # found by its keyed marks
    assert store.resolve("stable") == second
    assert store.verify(None).problems == ()
    store.remove((first,))
    assert opened(disk).verify(None).problems == ()


@pytest.mark.parametrize("secret", [None, OTHER, b""])
def test_a_wrong_key_is_one_sentence(disk: Disk, secret: bytes | None) -> None:
    filled(disk)
    with pytest.raises(WrongKey) as caught:
        opened(disk, secret)
    assert caught.value.message.count(".") == 1
    assert "--key-file" in caught.value.advice


def test_another_secret_opens_it_after_a_rekey_and_the_old_one_does_not(disk: Disk) -> None:
    first, second = filled(disk)
    before = {name: content for name, content in disk.objects.items() if name != "config"}
    opened(disk).rekey(OTHER)
    assert {name: content for name, content in disk.objects.items() if name != "config"} == before
    with pytest.raises(WrongKey):
        opened(disk)
    assert read(opened(disk, OTHER), first) == FILES
    opened(disk, OTHER).rekey(SECRET)
    assert opened(disk).verify((first, second)).problems == ()


def test_a_store_that_is_not_encrypted_has_no_key_to_change() -> None:
    store = open_store(MemoryBackend(), create=True)
    with pytest.raises(WrongState, match="not encrypted"):
        store.rekey(SECRET)


# ---------------------------------------------------------------------------------- what others put there


def swap(disk: Disk, one: str, two: str) -> None:
    disk.objects[one], disk.objects[two] = disk.objects[two], disk.objects[one]


@pytest.mark.parametrize("folder", ["receipts", "placements", "manifests", "packs", "signatures", "tags"])
def test_two_objects_that_change_places_are_both_refused(disk: Disk, folder: str) -> None:
    first, second = filled(disk)
    opened(disk).tag(first, Tag("other"))
    one, two = named(disk, folder)[:2]
    swap(disk, one, two)
    store = opened(disk)
    problems = store.verify(None).problems
    assert {problem.slug for problem in problems} == {"corrupt"}
    assert len(problems) >= 2
    if folder in {"placements", "manifests", "packs"}:
        for checkpoint in (first, second):
            with pytest.raises(ObjectCorrupt):
                read(store, checkpoint)


@pytest.mark.parametrize("folder", ["receipts", "placements", "manifests", "packs", "signatures", "tags"])
def test_a_copy_under_another_name_is_refused(disk: Disk, folder: str) -> None:
    first, _ = filled(disk)
    opened(disk).tag(first, Tag("other"))
    one, two = named(disk, folder)[:2]
    disk.objects[one] = disk.objects[two]
    assert {problem.slug for problem in opened(disk).verify(None).problems} == {"corrupt"}


def test_an_older_placement_under_a_newer_name_is_refused(disk: Disk) -> None:
    first, _ = filled(disk)
    [name] = named(disk, f"placements/{first}")
    disk.objects[name.replace("@00000001", "@00000002")] = disk.objects[name]
    with pytest.raises(ObjectCorrupt, match="does not open it: it was changed, or put there"):
        read(opened(disk), first)


def test_blobs_that_change_places_in_their_pack_are_refused(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk), {"x": b"".join(map(a_page, range(512)))})
    [name] = named(disk, "packs")
    content = disk.objects[name]
    start, size = 32 + 16, 256 * CHUNK_BYTES + 16  # two blobs that do not compress, each with its tag
    extra = (len(content) - start) // 2 - size
    assert 0 <= extra < 20_000
    # Where a blob ends does not matter here: whatever is moved, nothing of it opens.
    moved = content[:start] + content[start + size : start + 2 * size] + content[start : start + size]
    disk.objects[name] = moved + content[start + 2 * size :]
    with pytest.raises(ObjectCorrupt, match="does not open it"):
        read(opened(disk), checkpoint)


def test_plain_objects_are_refused_in_an_encrypted_store(disk: Disk) -> None:
    """Who can write to the disk makes a whole checkpoint with the id that is wanted, but without the key."""
    first, _ = filled(disk)
    plain = Disk()
    forger = open_store(MemoryBackend(plain), create=True, keys=Keys(trust=TRUST))
    forged, _ = write(forger, {"x": b"evil"}, created_ns=7)
    disk.objects |= {name: content for name, content in plain.objects.items() if name != "config"}
    store = opened(disk)
    with pytest.raises(ObjectCorrupt, match="it is not encrypted, as no object of this store is"):
        store.load(forged)
    assert {problem.slug for problem in store.verify(None).problems} == {"corrupt"}
    assert read(store, first) == FILES
    with pytest.raises(ObjectCorrupt):
        read(store, forged)


@pytest.mark.parametrize("folder", ["receipts", "placements", "signatures", "tags", "packs"])
def test_a_plain_object_of_one_kind_is_refused(disk: Disk, folder: str) -> None:
    filled(disk)
    plain = Disk()
    forger = open_store(MemoryBackend(plain), create=True, keys=Keys(trust=TRUST))
    forged, _ = write(forger, FILES)
    forger.tag(forged, Tag("stable"))
    disk.objects[named(disk, folder)[0]] = plain.objects[named(plain, folder)[0]]
    assert {problem.slug for problem in opened(disk).verify(None).problems} == {"corrupt"}


def test_a_config_that_says_that_nothing_is_encrypted_opens_nothing(disk: Disk) -> None:
    first, _ = filled(disk)
    put_config(MemoryBackend(disk), config_with(None))
    store = opened(disk, None)
    with pytest.raises(ObjectCorrupt, match="it is encrypted, as no object of this store is"):
        store.load(first)
    assert {problem.slug for problem in store.verify(None).problems} == {"corrupt"}


def test_who_gives_a_key_writes_nothing_into_a_store_that_was_made_plain(disk: Disk) -> None:
    """Whoever can write to the disk must not get the next checkpoint in plain by changing the config."""
    first, _ = filled(disk)
    put_config(MemoryBackend(disk), config_with(None))
    with pytest.raises((WrongKey, WrongState)), opened(disk, SECRET).writer() as writer:
        writer.commit(a_checkpoint(*add(writer, {"x": MARK}), created_ns=9))
    assert not [name for name, content in disk.objects.items() if MARK in content]
    assert first


def test_a_config_with_another_key_is_refused_as_a_whole(disk: Disk) -> None:
    """Even if it opens with the right secret: then its objects do not."""
    first, _ = filled(disk)
    other = encryption_of(wrap(SECRET, bytes(32), kdf_cost_log2=COST))
    put_config(MemoryBackend(disk), config_with(other))
    with pytest.raises(ObjectCorrupt, match="does not open it"):
        opened(disk).load(first)


@pytest.mark.parametrize("place", [0, 1, 5, 16, 40, -1, -5, -20])
@pytest.mark.parametrize(
    "folder", ["receipts", "placements", "manifests", "packs", "signatures", "tags", "indexes", "config"]
)
def test_any_flipped_bit_is_found(disk: Disk, folder: str, place: int) -> None:
    filled(disk)
    name = named(disk, folder)[0]
    content = bytearray(disk.objects[name])
    content[place] ^= 1
    disk.objects[name] = bytes(content)
    if folder == "config":
        with pytest.raises((FormatUnknown, ObjectCorrupt)) as caught:
            opened(disk)
        assert "config" in caught.value.message
        return
    problems = opened(disk).verify(None).problems
    assert problems
    assert {problem.slug for problem in problems} <= {"corrupt", "format"}


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "empty": lambda _: b"",
    "longer": lambda content: content + b"\0",
    "short body": lambda content: content[:40],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("folder", ["receipts", "placements", "manifests", "packs", "signatures", "tags"])
def test_any_change_of_length_is_found(disk: Disk, folder: str, change: str) -> None:
    filled(disk)
    name = named(disk, folder)[0]
    disk.objects[name] = CHANGES[change](disk.objects[name])
    problems = opened(disk).verify(None).problems
    assert problems
    assert {problem.slug for problem in problems} == {"corrupt"}


def test_the_config_itself_tells_no_more_than_it_must(disk: Disk) -> None:
    filled(disk)
    assert SECRET not in disk.objects["config"]
    assert MASTER not in disk.objects["config"]
    assert CONFIG.version == 2
