"""Documents and frames: their exact bytes, and what is refused at writing already."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from fakes.checkpoints import INODE, a_checkpoint
from fakes.old_store import an_old_store

from ckpt.codec.frame import HEADER_BYTES, Compression, Kind, frame, unframe
from ckpt.codec.objects import CONFIG, MANIFEST, SIGNATURE, TAG_MARK, checkpoint_id
from ckpt.codec.packed import Refused
from ckpt.codec.records import Encryption, Signature, StoreConfig, TagMark
from ckpt.codec.rules import RULES
from ckpt.codec.shapes import shape_of
from ckpt.codec.v1 import Chunk, ChunkedFile
from ckpt.errors import CkptError, FormatUnknown, ObjectCorrupt
from ckpt.model.checkpoint import CarriedFile, StoredFile
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.store.compress import from_object
from ckpt.units import ByteCount, CheckpointId, Digest, JobName, Nanoseconds, Pid, Tag

MARK = TagMark(tag=Tag("a"), serial=300, checkpoint=CheckpointId("ab" * 32))

FILE = StoredFile(
    name="pages-1.img",
    size_bytes=ByteCount(9),
    mode=0o600,
    root=Digest("ab" * 32),
)
CHUNKED = ChunkedFile(
    name="pages-1.img",
    size_bytes=ByteCount(9),
    mode=0o600,
    chunks=(Chunk(digest=Digest("ab" * 32), size_bytes=ByteCount(9)),),
)


def test_a_document_has_exactly_these_bytes() -> None:
    assert TAG_MARK.encode(MARK) == (
        b"\x83\xa4kind\xa3tag\xa7version\x01\xa5value"
        b"\x83\xa3tag\xa1a\xa6serial\xcd\x01\x2c\xaacheckpoint\xc4\x20" + b"\xab" * 32
    )


def test_an_object_has_exactly_these_bytes() -> None:
    header = "89636b70740d0a1a 5441474d 0001 00 00 00000004 00000004 d87f7e0c 0cad7b42".replace(" ", "")
    assert frame(Kind.TAG, Compression.NONE, 4, b"test").hex() == header + b"test".hex()


def test_the_id_of_a_checkpoint_does_not_change_between_versions() -> None:
    plain = a_checkpoint(FILE, carried=FILE)
    assert checkpoint_id(MANIFEST.encode(plain)) == checkpoint_id(MANIFEST.encode(replace(plain)))
    assert checkpoint_id(MANIFEST.encode(plain)) != checkpoint_id(
        MANIFEST.encode(replace(plain, message="x"))
    )


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"message": "a\0b"}, "message: a text with a NUL"),
        ({"message": "\ud800"}, "surrogates not allowed"),
        ({"message": "\udcc3\udca9"}, "would not read back"),
        ({"message": "x" * (1 << 20) + "x"}, "message: "),
        ({"message": 5}, "message: a number where a text belongs"),
        ({"created_ns": 1 << 63}, "created_ns: 9223372036854775808 is not between"),
        ({"created_ns": 1 << 64}, "Integer value out of range"),
        ({"created_ns": True}, "created_ns: a truth value where a number belongs"),
        ({"created_ns": 1.5}, "created_ns: a float where a plain value belongs"),
        ({"parent": "xyz"}, "'xyz' is no SHA-256"),
        ({"parent": "ab"}, "parent: a digest of 1 bytes"),
        ({"job": JobName("a b")}, "job: 'a b' is no name"),
        ({"image_sets": ()}, "image_sets: 0 image sets for 1 trees"),
        ({"inodes": (INODE, replace(INODE, kind="sofa"))}, "inodes[1].kind: 'sofa' is none of regular"),
        ({"inodes": (replace(INODE, deleted=1),)}, "inodes[0].deleted: a number where a truth value belongs"),
    ],
)
def test_what_could_not_be_read_is_not_written(change: dict[str, object], where: str) -> None:
    with pytest.raises(ObjectCorrupt) as caught:
        MANIFEST.encode(replace(a_checkpoint(FILE), **change))  # type: ignore[arg-type]
    assert where in caught.value.message


@pytest.mark.parametrize(
    "path", ["", "x", "/", "//x", "/x/", "/x/../y", "/x/./y", "/" + "x" * 256, "/x" * 2049]
)
def test_a_carried_file_goes_only_where_its_path_says(path: str) -> None:
    carried = CarriedFile(
        path=path, temporary=False, handle=None, uid=0, gid=0, mtime_ns=Nanoseconds(0), content=FILE
    )
    with pytest.raises(ObjectCorrupt, match=r"carried_files\[0\]\.path"):
        MANIFEST.encode(replace(a_checkpoint(FILE), carried_files=(carried,)))


@pytest.mark.parametrize(
    ("file", "where"),
    [
        (replace(FILE, size_bytes=ByteCount(-1)), "size_bytes: -1 is not between"),
        (replace(FILE, size_bytes=ByteCount(1 << 63)), "size_bytes: 9223372036854775808 is not between"),
        (replace(FILE, root=Digest("ab")), "root: a digest of 1 bytes"),
        (replace(FILE, mode=0o10000), "mode: 0o10000 has other bits"),
        (replace(FILE, name="../x"), "name: '../x' is not the plain name"),
    ],
)
def test_a_file_is_as_a_file_can_be(file: StoredFile, where: str) -> None:
    with pytest.raises(ObjectCorrupt, match=re.escape(f"image_sets[0].files[0].{where}")):
        MANIFEST.encode(a_checkpoint(file))


def test_two_files_of_one_image_set_have_two_names() -> None:
    with pytest.raises(ObjectCorrupt, match=re.escape("a second file of the name 'pages-1.img'")):
        MANIFEST.encode(a_checkpoint(FILE, FILE))


@pytest.mark.parametrize("size", [0, -1, (16 << 20) + 1])
def test_a_chunk_of_version_1_has_a_size_that_can_be(size: int) -> None:
    chunk = replace(CHUNKED.chunks[0], size_bytes=ByteCount(size))
    with pytest.raises(Refused, match="a chunk of"):
        RULES[Chunk](chunk)


def test_the_chunks_of_version_1_add_up_to_the_file() -> None:
    RULES[ChunkedFile](CHUNKED)
    with pytest.raises(Refused, match="10 bytes, but its chunks have 9 together"):
        RULES[ChunkedFile](replace(CHUNKED, size_bytes=ByteCount(10)))


def test_a_manifest_of_version_1_is_read_as_one_of_today() -> None:
    disk, contents = an_old_store()
    for checkpoint, files in contents.items():
        plain = from_object(Kind.MANIFEST, "x", disk.objects[f"manifests/{checkpoint}"])
        version, _ = MANIFEST.decode_any(plain, "x")
        assert version == 1
        found = MANIFEST.decode(plain, "x")
        assert {file.name: file.size_bytes for file in found.files} == {
            name: len(content) for name, content in files.items()
        }


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"public_key": "ab" * 31}, "public_key"),
        ({"public_key": "AB" * 32}, "public_key"),
        ({"signature": "ab" * 65}, "signature"),
        ({"signature": "xy" * 64}, "signature"),
    ],
)
def test_a_signature_has_the_form_of_one(change: dict[str, str], where: str) -> None:
    made = Signature(
        checkpoint=MARK.checkpoint, public_key="ab" * 32, signature="cd" * 64, signed_ns=Nanoseconds(-5)
    )
    assert SIGNATURE.decode(SIGNATURE.encode(made), "x") == made
    with pytest.raises(
        ObjectCorrupt, match=f"{where}: .* is not {'64' if where == 'signature' else '32'} bytes"
    ):
        SIGNATURE.encode(replace(made, **change))  # type: ignore[arg-type]


def test_what_is_signed_says_what_it_is_and_when() -> None:
    made = Signature(
        checkpoint=MARK.checkpoint, public_key="ab" * 32, signature="cd" * 64, signed_ns=Nanoseconds(258)
    )
    assert made.message == b"ckpt checkpoint signature 1\0" + b"\xab" * 32 + bytes(6) + b"\1\2"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kdf_salt": "ab" * 31}, "kdf_salt"),
        ({"wrapped_key": ""}, "wrapped_key"),
        ({"kdf_cost_log2": 9}, "kdf_cost_log2: 9 is not between 10 and 20"),
        ({"kdf_cost_log2": 21}, "kdf_cost_log2: 21 is not between 10 and 20"),
    ],
)
def test_a_config_asks_for_no_more_work_than_is_bearable(change: dict[str, object], where: str) -> None:
    encryption = Encryption(kdf_salt="ab" * 32, kdf_cost_log2=15, wrapped_key="cd" * 48)
    made = StoreConfig(id=Digest("ab" * 32), signatures_required=True, encryption=encryption)
    assert CONFIG.decode(CONFIG.encode(made), "x") == made
    with pytest.raises(ObjectCorrupt, match=f"encryption.{where}"):
        CONFIG.encode(replace(made, encryption=replace(encryption, **change)))  # type: ignore[arg-type]


def test_a_config_of_version_1_is_one_without_signatures_and_encryption() -> None:
    disk, _ = an_old_store()
    plain = from_object(Kind.CONFIG, "x", disk.objects["config"])
    assert CONFIG.decode(plain, "x") == StoreConfig(
        id=Digest("0d" * 32), signatures_required=False, encryption=None
    )


def test_a_newer_document_is_refused_with_both_versions() -> None:
    newer = TAG_MARK.encode(MARK).replace(b"version\x01", b"version\x09")
    with pytest.raises(FormatUnknown, match="version 9, and this ckpt reads version 1"):
        TAG_MARK.decode(newer, "x")


def test_every_cut_and_every_flipped_bit_of_a_sealed_object_is_found() -> None:
    whole = frame(Kind.TAG, Compression.NONE, 4, b"test")
    for size in range(len(whole)):
        with pytest.raises(CkptError):
            unframe(whole[:size], Kind.TAG, "x")
    for place in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(ObjectCorrupt):
            unframe(bytes(flipped), Kind.TAG, "x")
    assert len(whole) == HEADER_BYTES + 4


def test_a_type_without_a_shape_is_a_bug_of_the_model() -> None:
    @dataclass
    class Strange:
        share: float

    with pytest.raises(TypeError):
        shape_of(Strange)
    assert shape_of(Pid) is shape_of(Pid)


@pytest.mark.parametrize(
    ("path", "name", "where"),
    [
        ("/../../etc", "pids.max", "workload.cgroups[0].path"),
        ("web", "pids.max", "workload.cgroups[0].path"),
        ("/ckpt/web", "../cgroup.procs", "workload.cgroups[0].settings[0].name"),
    ],
)
def test_a_cgroup_that_leads_out_of_its_hierarchy_is_refused(path: str, name: str, where: str) -> None:
    plain = a_checkpoint(FILE)
    hostile = CgroupRecord(
        hierarchy="unified", path=path, settings=(CgroupSetting(name=name, value="1"),), members=()
    )
    with pytest.raises(ObjectCorrupt, match=re.escape(where)):
        MANIFEST.encode(replace(plain, workload=replace(plain.workload, cgroups=(hostile,))))
