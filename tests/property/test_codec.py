"""What was encoded decodes to the same; whatever the bytes are, decoding gives a value or a CkptError."""

from __future__ import annotations

import contextlib
import dataclasses
import stat
import struct
import tracemalloc
import typing
from collections.abc import Callable
from enum import StrEnum

import pytest
import zstandard
from fakes.checkpoints import a_checkpoint
from fakes.old_store import an_old_store
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt import units
from ckpt.codec.frame import Compression, Kind, frame
from ckpt.codec.hooks import decode_index, encode_index
from ckpt.codec.objects import CONFIG, MANIFEST, RECEIPT, SIGNATURE, TAG_MARK, checkpoint_id
from ckpt.codec.pack import BlobEntry, BlobKind, PackList, decode_list
from ckpt.codec.placement import Layer, PackRef, PlacedFile, Placement, decode_placement
from ckpt.codec.records import Encryption, Signature, TagMark
from ckpt.errors import CkptError, ObjectCorrupt
from ckpt.model.checkpoint import (
    AddressRun,
    CarriedFile,
    Checkpoint,
    ExtendedAttribute,
    GroupInstant,
    ImageSet,
    SavedFile,
    StoredFile,
    Volume,
)
from ckpt.model.inodes import Identity
from ckpt.model.network import Network, NetworkAddress, NetworkRoute
from ckpt.model.settings import ProcessSettings, ThreadSettings, cpu_ranges
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.store import layout
from ckpt.store.compress import BlobCompressor, from_blob, from_object, to_object

INT64 = {"min_value": -(1 << 63), "max_value": (1 << 63) - 1}
SIZE = {"min_value": 0, "max_value": (1 << 63) - 1}
UINT64 = {"min_value": 0, "max_value": (1 << 64) - 1}

# Paths are bytes to the kernel: what is no UTF-8 comes as os.fsdecode() gives it.
texts = st.binary(max_size=20).map(lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape"))
components = texts.filter(lambda text: text not in {"", ".", ".."} and "/" not in text)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
modes = st.integers(0, 0o7777)

SCALARS: dict[typing.Any, st.SearchStrategy[typing.Any]] = {
    bool: st.booleans(),
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    str: texts,
    units.ByteCount: st.integers(**SIZE),
    units.Nanoseconds: st.integers(**INT64),
    units.Pid: st.integers(0, (1 << 31) - 1),
    units.InodeNumber: st.integers(**UINT64),
    units.DeviceNumber: st.integers(**UINT64),
    units.Digest: digests,
    units.CheckpointId: digests,
    units.JobName: labels,
    units.Tag: labels,
}


def values_of(type_: typing.Any) -> st.SearchStrategy[typing.Any]:
    if type_ in SCALARS:
        return SCALARS[type_]
    if type_ in SPECIAL:
        return SPECIAL[type_]
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        return st.sampled_from(list(type_))
    if dataclasses.is_dataclass(type_):
        hints = typing.get_type_hints(type_)
        fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(type_)}
        return st.builds(typing.cast("type", type_), **fields)
    inner = values_of(typing.get_args(type_)[0])
    if typing.get_origin(type_) is tuple:
        return st.lists(inner, max_size=2).map(tuple)
    return st.none() | inner


def fitting(checkpoint: Checkpoint) -> Checkpoint:
    """With as many image sets as trees, directories that are paths, settings of distinct processes, in its group."""
    count = min(len(checkpoint.image_sets), len(checkpoint.workload.trees))
    workload = dataclasses.replace(checkpoint.workload, trees=checkpoint.workload.trees[:count])
    directories = tuple(f"/{number}" for number, _ in enumerate(checkpoint.saved_directories))
    group = checkpoint.group
    if group is not None:
        job = checkpoint.job or units.JobName("a")
        members = tuple(sorted({*group.members, job}))
        group = dataclasses.replace(group, members=members)
        checkpoint = dataclasses.replace(checkpoint, job=job)
    return dataclasses.replace(
        checkpoint,
        group=group,
        workload=workload,
        image_sets=checkpoint.image_sets[:count],
        saved_directories=directories,
        settings=tuple({process.pid: process for process in checkpoint.settings}.values()),
        networks=tuple({network.namespace: network for network in checkpoint.networks}.values()),
    )


SPECIAL: dict[typing.Any, st.SearchStrategy[typing.Any]] = {}
SPECIAL[StoredFile] = st.builds(
    StoredFile, name=components, size_bytes=st.integers(**SIZE), mode=modes, root=digests
)
SPECIAL[ImageSet] = st.builds(
    ImageSet,
    root=SCALARS[units.Pid],
    files=st.lists(SPECIAL[StoredFile], max_size=2, unique_by=lambda file: file.name).map(tuple),
    statistics=values_of(typing.get_type_hints(ImageSet)["statistics"]),
)
paths = st.lists(components, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
SPECIAL[CarriedFile] = st.builds(dataclasses.replace, values_of(CarriedFile), path=paths)
SPECIAL[ExtendedAttribute] = st.builds(
    ExtendedAttribute,
    name=components.map(lambda name: f"user.{name[:60]}") | st.just("system.posix_acl_access"),
    value=st.binary(max_size=20).map(bytes.hex),
)
SPECIAL[SavedFile] = st.builds(
    dataclasses.replace,
    values_of(SavedFile),
    path=paths,
    mode=modes.map(lambda bits: stat.S_IFREG | bits),
    attributes=st.lists(SPECIAL[ExtendedAttribute], max_size=2, unique_by=lambda each: each.name).map(
        lambda found: tuple(sorted(found, key=lambda each: each.name))
    ),
)
SPECIAL[Volume] = st.builds(dataclasses.replace, values_of(Volume), mountpoint=paths, filesystem=components)
SPECIAL[Identity] = st.builds(
    Identity, device=st.integers(**UINT64), inode=st.integers(1, UINT64["max_value"])
)
links = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}", fullmatch=True)
ip_addresses = st.ip_addresses().filter(lambda ip: not (ip.is_multicast or ip.is_unspecified)).map(str)
SPECIAL[NetworkAddress] = st.builds(
    NetworkAddress, interface=links, address=ip_addresses.map(lambda text: text + "/24")
)
SPECIAL[NetworkRoute] = st.builds(
    NetworkRoute,
    destination=st.ip_addresses().map(lambda ip: f"{ip}/{ip.max_prefixlen}"),
    gateway=st.just("") | ip_addresses,
    interface=links,
    source=st.just("") | ip_addresses,
    metric=st.integers(0, (1 << 32) - 1),
    table=st.integers(0, (1 << 32) - 1),
    on_link=st.booleans(),
)
SPECIAL[Network] = st.builds(
    dataclasses.replace,
    values_of(Network),
    parent=links,
    interface=links,
    mac=st.sampled_from(["", "02:00:00:00:00:05"]),
    mtu=st.sampled_from([0, 68, 1500, 65_535]),
)
SPECIAL[GroupInstant] = st.builds(
    GroupInstant,
    name=labels,
    instant=st.binary(min_size=8, max_size=8).map(bytes.hex),
    members=st.lists(labels, max_size=3).map(tuple),
)
SPECIAL[CgroupSetting] = st.builds(CgroupSetting, name=components, value=texts)
SPECIAL[CgroupRecord] = st.builds(dataclasses.replace, values_of(CgroupRecord), path=paths)
SPECIAL[Encryption] = st.builds(
    Encryption,
    kdf_salt=digests,
    kdf_cost_log2=st.integers(10, 20),
    wrapped_key=st.binary(min_size=48, max_size=48).map(bytes.hex),
)
SPECIAL[Signature] = st.builds(
    Signature,
    checkpoint=digests,
    public_key=digests,
    signature=st.binary(min_size=64, max_size=64).map(bytes.hex),
    signed_ns=st.integers(**INT64),
)
SPECIAL[TagMark] = st.builds(TagMark, tag=labels, serial=st.integers(1, 99_999_999), checkpoint=digests)

SPECIAL[ThreadSettings] = st.builds(
    ThreadSettings,
    thread=SCALARS[units.Pid],
    cpus=st.sets(st.integers(0, 65_535), max_size=4).map(cpu_ranges),
    io_priority=st.none() | st.integers(0, 0xFFFF),
    timer_slack_ns=st.none() | st.integers(**SIZE),
)
SPECIAL[ProcessSettings] = st.builds(
    ProcessSettings,
    pid=SCALARS[units.Pid],
    coredump_filter=st.none() | st.integers(0, (1 << 32) - 1),
    autogroup_nice=st.none() | st.integers(-20, 19),
    threads=values_of(typing.get_type_hints(ProcessSettings)["threads"]),
)

checkpoints = values_of(Checkpoint).map(fitting)
DOCUMENTS = [CONFIG, MANIFEST, RECEIPT, TAG_MARK, SIGNATURE]


@given(checkpoints)
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_reads_back_as_it_was_and_always_has_the_same_bytes(checkpoint: Checkpoint) -> None:
    encoded = MANIFEST.encode(checkpoint)
    assert MANIFEST.decode(encoded, "x") == checkpoint
    assert checkpoint_id(MANIFEST.encode(checkpoint)) == checkpoint_id(encoded)


@pytest.mark.parametrize("document", [CONFIG, RECEIPT, TAG_MARK, SIGNATURE])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_small_documents_read_back_as_they_were(document: typing.Any, data: st.DataObject) -> None:
    value = data.draw(values_of(document.content))
    assert document.decode(document.encode(value), "x") == value


@pytest.mark.parametrize("document", DOCUMENTS)
@given(content=st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_a_value_or_an_error_of_ours(document: typing.Any, content: bytes) -> None:
    with pytest.raises(CkptError):
        document.decode(content, "x")


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["set", "cut", "insert", "repeat"])):
            case "set" if place < len(content):
                content[place] = draw(st.integers(0, 255))
            case "cut":
                del content[place : place + draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = draw(st.sampled_from(HOSTILE) | st.binary(max_size=8))
            case _:
                content[place:place] = content[place : place + 60]
    return bytes(content)


# The beginnings of the largest containers, texts and numbers; an extension; a float.
HOSTILE = [
    bytes([first]) + b"\xff" * 4
    for first in (0xDD, 0xDF, 0xDB, 0xC6, 0xC9, 0xCA, 0xCE, 0xD6, 0x9F, 0x8F, 0xC1)
]
WHOLE = MANIFEST.encode(
    a_checkpoint(
        StoredFile(
            name="pages-1.img",
            size_bytes=units.ByteCount(9),
            mode=0o600,
            root=units.Digest("ab" * 32),
        )
    )
)
# Of an older ckpt: files as lists of chunks.
OLD = [
    from_object(Kind.MANIFEST, "x", content)
    for name, content in an_old_store()[0].objects.items()
    if name.startswith("manifests/")
]


@given(st.sampled_from([WHOLE, *OLD]).flatmap(mutated))
@settings(max_examples=400, deadline=None)
def test_a_changed_manifest_gives_a_value_or_an_error_of_ours_and_costs_no_memory(content: bytes) -> None:
    assert peak_bytes_of(lambda: MANIFEST.decode(content, "x")) < 4 << 20


def peak_bytes_of(decode: Callable[[], object]) -> int:
    """The most memory that it took at once to get a value or an error of ours."""
    tracemalloc.start()
    try:
        with contextlib.suppress(CkptError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------- packs, placements and indexes


@st.composite
def pack_lists(draw: st.DrawFn) -> PackList:
    blobs = draw(
        st.lists(
            st.builds(
                BlobEntry,
                stored_bytes=st.integers(1, 1 << 20),
                chunks=st.integers(1, 4),
                compression=st.sampled_from(Compression),
                kind=st.sampled_from(BlobKind),
            ),
            min_size=1,
            max_size=4,
        )
    )
    size = 32 * sum(blob.chunks for blob in blobs)
    return PackList(blobs=tuple(blobs), digests=draw(st.binary(min_size=size, max_size=size)))


@st.composite
def layers(draw: st.DrawFn, pack_count: int, chunk_count: int) -> Layer:
    layer, start = Layer(), 0
    for _ in range(draw(st.integers(0, 6)) if pack_count else 0):
        start += draw(st.integers(0, 20))
        count = draw(st.integers(1, 256))
        if start + count > chunk_count:
            break
        blob = draw(st.integers(0, 63))
        first = draw(st.integers(0, 256 - count))
        layer.add(start, count, draw(st.integers(0, pack_count - 1)), 256 * blob + first)
        start += count
    return layer


@st.composite
def address_runs(draw: st.DrawFn, chunk_count: int) -> tuple[AddressRun, ...]:
    found = []
    for space in draw(
        st.lists(st.sampled_from(["pagemap-1", "pagemap-shmem-4", "é"]), max_size=3, unique=True)
    ):
        for _ in range(draw(st.integers(1, 3))):
            if not chunk_count:
                break
            chunk = draw(st.integers(0, chunk_count - 1))
            count = draw(st.integers(1, chunk_count - chunk))
            found.append(
                AddressRun(space=space, page=draw(st.integers(0, (1 << 52) - 1)), chunk=chunk, count=count)
            )
    return tuple(found)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    packs = draw(
        st.lists(
            st.builds(
                PackRef,
                name=digests,
                object_bytes=st.integers(1000, 80 << 20),
                list_bytes=st.integers(1, 999),
            ),
            max_size=3,
        )
    )
    files = []
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(0, 3 << 20) | st.integers(0, 1 << 43))
        count = -(-size // units.CHUNK_BYTES)
        files.append(
            PlacedFile(
                root=draw(digests),
                size_bytes=units.ByteCount(size),
                layers=tuple(draw(layers(len(packs), count)) for _ in range(draw(st.integers(0, 3)))),
                addresses=draw(address_runs(count)),
            )
        )
    return Placement(checkpoint=draw(digests), packs=tuple(packs), files=tuple(files))


def index_of(marks: list[int], packs: list[str]) -> bytes:
    names = tuple(map(units.Digest, packs))
    return encode_index({mark: number % len(names) for number, mark in enumerate(marks)}, names)


indexes = st.builds(
    index_of,
    st.lists(st.integers(0, (1 << 64) - 1), max_size=8, unique=True),
    st.lists(digests, min_size=1, max_size=3, unique=True),
)


@given(pack_lists())
@settings(max_examples=100, deadline=None)
def test_the_list_of_a_pack_reads_back_as_it_was(listed: PackList) -> None:
    found = decode_list(listed.encode(), "x")
    assert (found.blobs, found.digests) == (listed.blobs, listed.digests)
    assert found.encode() == listed.encode()


@given(placements())
@settings(max_examples=200, deadline=None)
def test_a_placement_reads_back_as_it_was(placement: Placement) -> None:
    found = decode_placement(placement.encode(), "x")
    assert found == placement
    assert found.encode() == placement.encode()


@given(indexes)
@settings(max_examples=100, deadline=None)
def test_an_index_reads_back_as_it_was(content: bytes) -> None:
    marks, places, names = decode_index(content, "x")
    assert encode_index(dict(zip(marks, places, strict=True)), names) == content


DECODERS: dict[str, tuple[Callable[[bytes], object], st.SearchStrategy[bytes]]] = {
    "list": (lambda content: decode_list(content, "x").offsets, pack_lists().map(PackList.encode)),
    "placement": (
        lambda content: decode_placement(content, "x").encode(),
        placements().map(Placement.encode),
    ),
    "index": (lambda content: decode_index(content, "x"), indexes),
}


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_bytes_of_the_store_give_a_value_or_an_error_of_ours_and_cost_no_memory(
    name: str, data: st.DataObject
) -> None:
    decode, whole = DECODERS[name]
    content = data.draw(st.binary(max_size=300) | whole.flatmap(mutated))
    assert peak_bytes_of(lambda: decode(content)) < 1 << 20


@pytest.mark.parametrize("compression", Compression)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_of_a_blob_give_as_many_as_are_promised_or_an_error(
    compression: Compression, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 3))
    plain = b"a page of memory ".ljust(units.CHUNK_BYTES, b".") * count
    _, whole = BlobCompressor().compress(BlobKind.WHOLE, plain)
    content = data.draw(st.binary(max_size=200) | mutated(whole))
    entry = BlobEntry(
        stored_bytes=max(1, len(content)),
        chunks=data.draw(st.integers(1, 3)),
        compression=compression,
        kind=BlobKind.WHOLE,
    )

    def decode() -> None:
        assert len(from_blob(entry, content, "x")) == entry.chunks * units.CHUNK_BYTES

    assert peak_bytes_of(decode) < 4 << 20


def test_a_blob_that_claims_more_than_its_list_is_refused_before_memory_is_spent() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    entry = BlobEntry(stored_bytes=len(bomb), chunks=256, compression=Compression.ZSTD, kind=BlobKind.WHOLE)
    with pytest.raises(ObjectCorrupt, match="claims 67108864"):
        from_blob(entry, bomb, "x")
    assert peak_bytes_of(lambda: from_blob(entry, bomb, "x")) < 1 << 20


@pytest.mark.parametrize("kind", Kind)
def test_an_object_that_claims_more_than_its_kind_may_have_is_refused(kind: Kind) -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(300 << 20))
    content = frame(kind, Compression.ZSTD, 300 << 20, bomb)
    with pytest.raises(ObjectCorrupt, match="is the most"):
        from_object(kind, "x", content)
    smaller = frame(kind, Compression.ZSTD, 4096, bomb)
    assert peak_bytes_of(lambda: from_object(kind, "x", smaller)) < 1 << 20


def a_bomb(run_count: int, *, addresses: bool) -> bytes:
    """The plain bytes of a placement of so many runs, which compress to nearly nothing."""
    size = run_count * units.CHUNK_BYTES
    ones, zeros = run_count, bytes(run_count)
    layer = struct.pack(">I", ones) + zeros * 4 + b"\1" * ones + zeros * 3 + zeros * 4 + zeros * 4
    space = struct.pack(">HI", 1, run_count) + b"x" + zeros * 16 + b"\1" * run_count + zeros * 7
    return (
        struct.pack(">32sII", bytes(32), 1, 1)
        + struct.pack(">32sII", bytes(32), 1000, 10)
        + struct.pack(">32sQHI", bytes(32), size, 0 if addresses else 1, 1 if addresses else 0)
        + (space if addresses else layer)
    )


@pytest.mark.parametrize("addresses", [False, True])
def test_a_placement_of_very_many_runs_takes_memory_in_proportion(*, addresses: bool) -> None:
    content = a_bomb(200_000, addresses=addresses)
    assert len(to_object(Kind.PLACEMENT, content)) < len(content) // 500
    assert peak_bytes_of(lambda: decode_placement(content, "x")) < 8 * len(content)


@pytest.mark.parametrize("kind", list(Kind))
@given(plain=st.binary(max_size=2000))
@settings(max_examples=40, deadline=None)
def test_an_object_gives_back_its_plain_bytes(kind: Kind, plain: bytes) -> None:
    assert from_object(kind, "x", to_object(kind, plain)) == plain


@given(mutated(to_object(Kind.TAG, b"some bytes that compress " * 20)))
@settings(max_examples=200, deadline=None)
def test_a_changed_object_is_never_taken_for_a_whole_one(content: bytes) -> None:
    whole = to_object(Kind.TAG, b"some bytes that compress " * 20)
    if content != whole:
        with pytest.raises(CkptError):
            from_object(Kind.TAG, "x", content)


@given(mutated(to_object(Kind.CHUNK, b"some bytes that compress " * 20)) | st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_a_changed_chunk_gives_bytes_or_an_error_of_ours(content: bytes) -> None:
    try:
        plain = from_object(Kind.CHUNK, "x", content)
    except CkptError:
        return
    assert len(plain) <= 1000


@given(texts)
@settings(max_examples=200, deadline=None)
def test_names_of_objects_are_read_only_as_they_are_written(text: str) -> None:
    for name in (text, *(f"{folder}/{text}" for folder in layout.FOLDERS)):
        assert not layout.is_known(name)


@given(digests, labels, st.integers(1, 99_999_999))
def test_names_of_objects_say_what_they_are_of(digest: str, tag: str, serial: int) -> None:
    found, other = units.CheckpointId(digest), units.Digest(digest)
    for name in (layout.TagName(tag=units.Tag(tag), serial=serial, checkpoint=found),):
        assert layout.tag_in(name.object) == name
    placement = layout.PlacementName(checkpoint=found, serial=serial)
    assert layout.placement_in(placement.object) == placement
    signature = layout.SignatureName(checkpoint=found, public_key=digest)
    assert layout.signature_in(signature.object) == signature
    for made in (
        layout.pack(other),
        layout.chunk(other),
        layout.index(other),
        layout.manifest(found),
        layout.receipt(found),
    ):
        assert layout.digest_in(made) == digest
        assert layout.is_known(made)
        assert not layout.is_known(f"{made}.bak")
        assert not layout.is_known(made.upper())
