"""A store of version 1, as the ckpt that wrote it did: each chunk an object of its own."""

from __future__ import annotations

from dataclasses import fields

from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import a_checkpoint
from fakes.values import a_page

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.objects import checkpoint_id, digest_of
from ckpt.codec.records import ReceiptV1, StoreConfigV1, TagMark
from ckpt.codec.v1 import Chunk, ChunkedCheckpoint, ChunkedFile, ChunkedImageSet
from ckpt.codec.v2 import InodeRecordV2, PendingTimerV2
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.clocks import PendingTimer
from ckpt.model.inodes import InodeRecord
from ckpt.store import layout
from ckpt.store.compress import to_object
from ckpt.store.layout import TagName
from ckpt.units import ByteCount, CheckpointId, Digest, Tag

OLD_CHUNK_BYTES = 8192

_CONFIG = DocumentType(kind=Kind.CONFIG, version=1, content=StoreConfigV1)
_MANIFEST = DocumentType(kind=Kind.MANIFEST, version=1, content=ChunkedCheckpoint)
_RECEIPT = DocumentType(kind=Kind.RECEIPT, version=1, content=ReceiptV1)
_MARK = DocumentType(kind=Kind.TAG, version=1, content=TagMark)


def an_old_store() -> tuple[Disk, dict[CheckpointId, dict[str, bytes]]]:
    """The disk, and the files of each of its two checkpoints, which share chunks; the second has the tag "old"."""
    disk = Disk()
    backend = MemoryBackend(disk)
    config = StoreConfigV1(id=Digest("0d" * 32), chunk_bytes=ByteCount(OLD_CHUNK_BYTES))
    backend.create(layout.CONFIG, to_object(Kind.CONFIG, _CONFIG.encode(config)))
    shared = a_page(50) + a_page(51)
    contents = (
        {"pages-1.img": shared + a_page(52) + bytes(20_000), "core-1.img": b"a small one"},
        {"pages-1.img": shared + a_page(53), "empty.img": b""},
    )
    made = {_write(backend, files, number): files for number, files in enumerate(contents, 1)}
    mark = TagMark(tag=Tag("old"), serial=1, checkpoint=list(made)[1])
    name = TagName(tag=mark.tag, serial=1, checkpoint=mark.checkpoint).object
    backend.create(name, to_object(Kind.TAG, _MARK.encode(mark)))
    return disk, made


def timer_in_version_2(timer: PendingTimer) -> PendingTimerV2:
    """The timer as versions 1 and 2 write it."""
    return PendingTimerV2(**{field.name: getattr(timer, field.name) for field in fields(PendingTimerV2)})


def in_version_2(inode: InodeRecord) -> InodeRecordV2:
    """The record as versions 1 and 2 write it."""
    return InodeRecordV2(**{field.name: getattr(inode, field.name) for field in fields(InodeRecordV2)})


def _write(backend: MemoryBackend, files: dict[str, bytes], created_ns: int) -> CheckpointId:
    chunked = tuple(_file(backend, name, content) for name, content in files.items())
    today = a_checkpoint(created_ns=created_ns)
    same = {field.name: getattr(today, field.name) for field in fields(Checkpoint)}
    [images] = today.image_sets
    old = ChunkedImageSet(root=images.root, files=chunked, statistics=images.statistics)
    for name in ("waits", "saved_files", "saved_directories", "volumes", "settings", "networks", "group"):
        del same[name]
    timers = tuple(timer_in_version_2(timer) for timer in today.timers)
    inodes = tuple(in_version_2(inode) for inode in today.inodes)
    plain = _MANIFEST.encode(
        ChunkedCheckpoint(
            **same | {"timers": timers, "image_sets": (old,), "inodes": inodes, "carried_files": ()}
        )
    )
    found = checkpoint_id(plain)
    receipt = ReceiptV1(
        checkpoint=found,
        job=today.job,
        created_ns=today.created_ns,
        new_bytes=ByteCount(1),
        chunks_stored_bytes=ByteCount(1),
    )
    backend.create(layout.receipt(found), to_object(Kind.RECEIPT, _RECEIPT.encode(receipt)))
    backend.create(layout.manifest(found), to_object(Kind.MANIFEST, plain))
    return found


def _file(backend: MemoryBackend, name: str, content: bytes) -> ChunkedFile:
    chunks = []
    for start in range(0, len(content), OLD_CHUNK_BYTES):
        plain = content[start : start + OLD_CHUNK_BYTES]
        digest = digest_of(plain)
        if any(plain):
            backend.create(layout.chunk(digest), to_object(Kind.CHUNK, plain))
        chunks.append(Chunk(digest=digest, size_bytes=ByteCount(len(plain))))
    return ChunkedFile(name=name, size_bytes=ByteCount(len(content)), mode=0o600, chunks=tuple(chunks))
