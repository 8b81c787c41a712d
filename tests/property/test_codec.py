"""What was encoded decodes to the same; whatever the bytes are, decoding gives a value or a CkptError."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc
import typing
from enum import StrEnum

import pytest
from fakes.checkpoints import a_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt import units
from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG, MANIFEST, RECEIPT, TAG_MARK, checkpoint_id
from ckpt.codec.records import StoreConfig, TagMark
from ckpt.errors import CkptError
from ckpt.model.checkpoint import CarriedFile, Checkpoint, Chunk, ImageSet, StoredFile
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.store import layout
from ckpt.store.compress import from_object, to_object

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


def a_file(name: str, mode: int, chunks: list[Chunk]) -> StoredFile:
    size = units.ByteCount(sum(chunk.size_bytes for chunk in chunks))
    return StoredFile(name=name, size_bytes=size, mode=mode, chunks=tuple(chunks))


def fitting(checkpoint: Checkpoint) -> Checkpoint:
    """With as many image sets as trees."""
    count = min(len(checkpoint.image_sets), len(checkpoint.workload.trees))
    workload = dataclasses.replace(checkpoint.workload, trees=checkpoint.workload.trees[:count])
    return dataclasses.replace(checkpoint, workload=workload, image_sets=checkpoint.image_sets[:count])


SPECIAL: dict[typing.Any, st.SearchStrategy[typing.Any]] = {}
SPECIAL[Chunk] = st.builds(Chunk, digest=digests, size_bytes=st.integers(1, 16 << 20))
SPECIAL[StoredFile] = st.builds(a_file, components, modes, st.lists(SPECIAL[Chunk], max_size=2))
SPECIAL[ImageSet] = st.builds(
    ImageSet,
    root=SCALARS[units.Pid],
    files=st.lists(SPECIAL[StoredFile], max_size=2, unique_by=lambda file: file.name).map(tuple),
    statistics=values_of(typing.get_type_hints(ImageSet)["statistics"]),
)
paths = st.lists(components, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
SPECIAL[CarriedFile] = st.builds(dataclasses.replace, values_of(CarriedFile), path=paths)
SPECIAL[CgroupSetting] = st.builds(CgroupSetting, name=components, value=texts)
SPECIAL[CgroupRecord] = st.builds(dataclasses.replace, values_of(CgroupRecord), path=paths)
SPECIAL[StoreConfig] = st.builds(
    StoreConfig, id=digests, chunk_bytes=st.integers(1, 4096).map(lambda pages: pages * 4096)
)
SPECIAL[TagMark] = st.builds(TagMark, tag=labels, serial=st.integers(1, 99_999_999), checkpoint=digests)

checkpoints = values_of(Checkpoint).map(fitting)
DOCUMENTS = [CONFIG, MANIFEST, RECEIPT, TAG_MARK]


@given(checkpoints)
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_reads_back_as_it_was_and_always_has_the_same_bytes(checkpoint: Checkpoint) -> None:
    encoded = MANIFEST.encode(checkpoint)
    assert MANIFEST.decode(encoded, "x") == checkpoint
    assert checkpoint_id(MANIFEST.encode(checkpoint)) == checkpoint_id(encoded)


@pytest.mark.parametrize("document", [CONFIG, RECEIPT, TAG_MARK])
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
            chunks=(Chunk(digest=units.Digest("ab" * 32), size_bytes=units.ByteCount(9)),),
        )
    )
)


@given(mutated(WHOLE))
@settings(max_examples=400, deadline=None)
def test_a_changed_manifest_gives_a_value_or_an_error_of_ours_and_costs_no_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(CkptError):
            MANIFEST.decode(content, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


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
    for name in (text, f"chunks/{text}", f"manifests/{text}", f"tags/{text}"):
        assert layout.digest_in(name) is None
        assert layout.tag_in(name) is None
