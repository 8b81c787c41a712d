"""Archives: what goes out comes in, and whatever somebody made of one on the way is refused."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import pytest
import zstandard
from fakes.checkpoints import a_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.codec.limits import DOCUMENT_BYTES_MAX
from ckpt.codec.objects import MANIFEST, SIGNATURE, RootDigest, checkpoint_id, chunk_digests
from ckpt.codec.records import Signature
from ckpt.errors import CkptError, FormatUnknown, ObjectCorrupt, Untrusted
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.reports import StoredCheckpoint
from ckpt.store import tarball
from ckpt.store.archive import (
    SIGNATURE_BYTES_MAX,
    SIGNATURES_MAX,
    ArchiveReader,
    export_archive,
    import_archive,
)
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, Nanoseconds

MTIME = 1_800_000_000
MARK = b"ckpt archive 1\n"


def root_of(content: bytes) -> RootDigest:
    digest = RootDigest(len(content))
    padded = content + bytes(-len(content) % CHUNK_BYTES)
    digest.add(b"".join(chunk_digests(padded)))
    return digest


def stored_file(name: str, content: bytes) -> StoredFile:
    return StoredFile(name=name, size_bytes=ByteCount(len(content)), mode=0o600, root=root_of(content).root())


class Shelf:
    """A store in memory, for one file after another."""

    def __init__(self) -> None:
        self.checkpoints: dict[CheckpointId, Checkpoint] = {}
        self.vouching: dict[CheckpointId, tuple[Signature, ...]] = {}
        self.contents: dict[StoredFile, bytes] = {}
        self.writers = 0
        self.new_bytes = ByteCount(0)
        self.stored_bytes = ByteCount(0)

    def has(self, checkpoint: CheckpointId) -> bool:
        return checkpoint in self.checkpoints

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        found = self.checkpoints[checkpoint]
        return StoredCheckpoint(id=checkpoint, checkpoint=found, tags=(), stored_bytes=ByteCount(0))

    def signatures(self, checkpoint: CheckpointId) -> tuple[Signature, ...]:
        return self.vouching[checkpoint]

    def stream(self, checkpoint: CheckpointId, file: StoredFile) -> Iterator[bytes]:
        content = self.contents[file]
        for at in range(0, len(content), 1 << 20):
            yield content[at : at + (1 << 20)]

    @contextmanager
    def writer(self) -> Iterator[Shelf]:
        self.writers += 1
        yield self

    def add_stream(
        self, read: Callable[[int], bytes], *, name: str, size_bytes: int, mode: int
    ) -> StoredFile:
        pieces = []
        while piece := read(100_000):
            pieces.append(piece)
        content = b"".join(pieces)
        assert len(content) == size_bytes
        file = replace(stored_file(name, content), mode=mode)
        self.contents[file] = content
        return file

    def commit(self, checkpoint: Checkpoint, *, signatures: tuple[Signature, ...]) -> CheckpointId:
        found = checkpoint_id(MANIFEST.encode(checkpoint))
        self.checkpoints[found] = checkpoint
        self.vouching[found] = signatures
        return found


NOISE = random.Random(3).randbytes(70_000)
FILES = {
    "core-7.img": b"the core",
    "empty.img": b"",
    "inventory.img": NOISE[:512],
    "pages-1.img": bytes(2 << 20) + NOISE,
}


def signature(checkpoint: CheckpointId, number: int = 0) -> Signature:
    return Signature(
        checkpoint=checkpoint,
        public_key=f"{number:02x}" * 32,
        signature="ab" * 64,
        signed_ns=Nanoseconds(MTIME),
    )


def a_shelf(signatures: int = 2) -> tuple[Shelf, CheckpointId]:
    shelf = Shelf()
    for name, content in FILES.items():
        shelf.contents[stored_file(name, content)] = content
    carried = stored_file("ring", b"carried" * 1000)
    shelf.contents[carried] = b"carried" * 1000
    checkpoint = a_checkpoint(
        *(stored_file(name, content) for name, content in FILES.items()), carried=carried
    )
    found = shelf.commit(checkpoint, signatures=())
    shelf.vouching[found] = tuple(signature(found, number) for number in range(signatures))
    return shelf, found


def archive_of(shelf: Shelf, checkpoint: CheckpointId) -> bytes:
    out = io.BytesIO()
    export_archive(shelf, checkpoint, out.write)
    return out.getvalue()


def trust_all(_checkpoint: CheckpointId, signatures: tuple[Signature, ...]) -> tuple[Signature, ...]:
    return signatures


def read_into(
    shelf: Shelf,
    archive: bytes,
    check_trust: Callable[[CheckpointId, tuple[Signature, ...]], tuple[Signature, ...]] = trust_all,
) -> CheckpointId:
    return import_archive(ArchiveReader(io.BytesIO(archive).read, "a.ckpt"), lambda: shelf, check_trust).id


def packed(plain: bytes) -> bytes:
    return bytes(zstandard.ZstdCompressor(level=1).compress(plain))


def unpacked(archive: bytes) -> bytes:
    return b"".join(zstandard.ZstdDecompressor().read_to_iter(io.BytesIO(archive)))


def member(name: str, content: bytes, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    return tarball.header(name, size, MTIME) + content + tarball.padding(len(content))


def refusal_of(archive: bytes) -> CkptError:
    """What the import of this says; nothing was committed."""
    shelf = Shelf()
    with pytest.raises(CkptError) as caught:
        read_into(shelf, archive)
    assert not shelf.checkpoints
    assert caught.value.exit_code in {42, 43}
    assert "a.ckpt" in str(caught.value)
    return caught.value


def test_what_goes_out_comes_in_with_its_id_and_its_signatures() -> None:
    shelf, checkpoint = a_shelf()
    other = Shelf()
    assert read_into(other, archive_of(shelf, checkpoint)) == checkpoint
    assert other.checkpoints == shelf.checkpoints
    assert other.contents == shelf.contents
    assert other.vouching == shelf.vouching


def test_a_checkpoint_without_signatures_or_carried_files_goes_out_and_in() -> None:
    shelf, other = Shelf(), Shelf()
    checkpoint = shelf.commit(a_checkpoint(), signatures=())
    assert read_into(other, archive_of(shelf, checkpoint)) == checkpoint
    assert other.checkpoints == shelf.checkpoints


def test_the_same_checkpoint_gives_the_same_tar() -> None:
    assert unpacked(archive_of(*a_shelf())) == unpacked(archive_of(*a_shelf()))


def test_it_tells_whether_the_checkpoint_was_there() -> None:
    shelf, checkpoint = a_shelf()
    archive = archive_of(shelf, checkpoint)
    other = Shelf()
    reports = [
        import_archive(ArchiveReader(io.BytesIO(archive).read, "a.ckpt"), lambda: other, trust_all)
        for _ in range(2)
    ]
    assert [report.was_there for report in reports] == [False, True]


def test_a_stream_that_comes_in_drops_is_read_as_well() -> None:
    shelf, checkpoint = a_shelf()
    archive = io.BytesIO(archive_of(shelf, checkpoint))
    reader = ArchiveReader(lambda count: archive.read(min(count, 7)), "a.ckpt")
    assert import_archive(reader, Shelf, trust_all).id == checkpoint


def test_trust_is_asked_before_anything_is_written() -> None:
    shelf, checkpoint = a_shelf()
    asked = []

    def refuse(found: CheckpointId, signatures: tuple[Signature, ...]) -> NoReturn:
        asked.append((found, signatures))
        raise Untrusted(checkpoint=found, reason="nobody knows the key")

    other = Shelf()
    with pytest.raises(Untrusted):
        read_into(other, archive_of(shelf, checkpoint), refuse)
    assert asked == [(checkpoint, shelf.vouching[checkpoint])]
    assert other.writers == 0


def test_an_old_manifest_is_not_exported() -> None:
    shelf, checkpoint = a_shelf()
    old = CheckpointId("ab" * 32)
    shelf.checkpoints[old] = shelf.checkpoints[checkpoint]
    with pytest.raises(FormatUnknown, match="older version"):
        archive_of(shelf, old)


def test_an_archive_that_was_cut_anywhere_is_refused() -> None:
    archive = archive_of(*a_shelf())
    cuts = [*range(200), *range(200, len(archive), 997), *range(len(archive) - 200, len(archive))]
    for cut in cuts:
        refusal_of(archive[:cut])


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused(position: int, change: int) -> None:
    archive = bytearray(archive_of(*a_shelf()))
    position %= len(archive)
    archive[position] ^= change
    shelf = Shelf()
    try:
        read_into(shelf, bytes(archive))
    except (ObjectCorrupt, FormatUnknown):
        assert not shelf.checkpoints
    else:
        # The flags of zstd's header may say the same in another way; what comes in is what went out.
        assert shelf.checkpoints == a_shelf()[0].checkpoints


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_of_the_tar_is_refused_or_gives_another_id(position: int, change: int) -> None:
    shelf, checkpoint = a_shelf()
    plain = bytearray(unpacked(archive_of(shelf, checkpoint)))
    position %= len(plain)
    plain[position] ^= change
    other = Shelf()
    try:
        found = read_into(other, packed(bytes(plain)))
    except (ObjectCorrupt, FormatUnknown):
        assert not other.checkpoints
    else:
        # The manifest is another, which nobody has signed; or a signature is, which the store judges.
        assert found != checkpoint or other.vouching != shelf.vouching
        assert [other.contents[file] for file in other.checkpoints[found].files] == [
            shelf.contents[file] for file in shelf.checkpoints[checkpoint].files
        ]


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=2000), compressed=st.booleans())
def test_any_bytes_are_refused(content: bytes, compressed: bool) -> None:  # noqa: FBT001
    refusal_of(packed(content) if compressed else content)


def test_what_is_no_archive_is_called_so() -> None:
    assert isinstance(refusal_of(b"hello, this is a text"), FormatUnknown)
    assert isinstance(refusal_of(packed(b"hello" * 1000)), FormatUnknown)
    assert isinstance(refusal_of(packed(member("etc/passwd", b"root"))), FormatUnknown)


def test_an_archive_of_a_newer_ckpt_is_named_with_its_version() -> None:
    error = refusal_of(packed(member("ckpt-archive", b"ckpt archive 2\n")))
    assert isinstance(error, FormatUnknown)
    assert "version 2" in str(error)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a file is called otherwise", lambda plain: plain.replace(b"files/1\0", b"files/9\0")),
        ("a name climbs out", lambda plain: plain.replace(b"files/1\0", b"../x/1\0")),
        ("something follows the end", lambda plain: plain + b"x"),
        ("a member follows the last", lambda plain: plain[:-1024] + member("x", b"x") + tarball.END),
        ("the end is missing", lambda plain: plain[:-1024]),
        ("the end is half there", lambda plain: plain[:-512]),
        ("there is something in the padding", lambda plain: plain.replace(MARK + bytes(9), MARK + b"evilevil\0")),
        ("a header's checksum is wrong", lambda plain: plain.replace(b"ustar\00000", b"ustar\00001")),
        ("a content is another", lambda plain: plain.replace(b"the core", b"the c0re")),
        ("the first file is missing", lambda plain: plain.replace(member("files/0", b"the core"), b"")),
        ("a file comes twice", lambda plain: plain.replace(member("files/0", b"the core"), member("files/0", b"the core") * 2)),
    ],
)  # fmt: skip
def test_a_tar_that_is_not_as_the_manifest_says_is_refused(
    what: str, change: Callable[[bytes], bytes]
) -> None:
    shelf, checkpoint = a_shelf()
    plain = unpacked(archive_of(shelf, checkpoint))
    changed = change(plain)
    assert changed != plain, what
    refusal_of(packed(changed))


def test_a_file_that_was_swapped_for_another_is_named() -> None:
    plain = unpacked(archive_of(*a_shelf()))
    error = refusal_of(packed(plain.replace(b"the core", b"evilcore")))
    assert "core-7.img" in str(error)


def test_something_behind_the_frame_is_refused() -> None:
    archive = archive_of(*a_shelf())
    refusal_of(archive + b"\0")
    refusal_of(archive + archive)
    refusal_of(archive + packed(b"more"))


def test_a_manifest_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    head = member("ckpt-archive", MARK)
    too_long = member("manifest", b"", DOCUMENT_BYTES_MAX + 1)
    assert str(DOCUMENT_BYTES_MAX) in str(refusal_of(packed(head + too_long + bytes(1 << 20))))


def test_signatures_are_bounded_in_size_and_number() -> None:
    plain = unpacked(archive_of(*a_shelf(signatures=0)))
    at = plain.index(tarball.header("files/0", 8, MTIME))
    document = SIGNATURE.encode(signature(CheckpointId("ab" * 32)))
    many = b"".join(member(f"signatures/{number}", document) for number in range(SIGNATURES_MAX + 1))
    assert "signatures" in str(refusal_of(packed(plain[:at] + many + plain[at:])))
    long = member("signatures/0", b"", SIGNATURE_BYTES_MAX + 1)
    assert str(SIGNATURE_BYTES_MAX) in str(refusal_of(packed(plain[:at] + long + plain[at:])))


def test_a_bomb_takes_no_memory() -> None:
    bomb = packed(
        member("ckpt-archive", MARK) + member("manifest", b"", DOCUMENT_BYTES_MAX) + bytes(200 << 20)
    )
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        refusal_of(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A manifest may have 64 MiB, and it is one only when it has been read.
    assert peak < 2.5 * DOCUMENT_BYTES_MAX


def test_an_archive_that_was_compressed_anew_is_read() -> None:
    shelf, checkpoint = a_shelf()
    plain = unpacked(archive_of(shelf, checkpoint))
    for level in (1, 19):
        for checksum in (False, True):
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum)
            assert read_into(Shelf(), compressor.compress(plain)) == checkpoint


def test_a_frame_that_needs_a_huge_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    out = io.BytesIO()
    with compressor.stream_writer(out, closefd=False) as stream:
        stream.write(unpacked(archive_of(*a_shelf())))
    refusal_of(out.getvalue())


def test_big_files_and_long_names_have_extended_headers_that_tar_reads() -> None:
    import tarfile

    size, name = (9 << 30), "d/" + "n" * 200
    header = tarball.header(name, size, MTIME)
    assert len(header) == 3 * tarball.BLOCK_BYTES
    with tarfile.open(fileobj=io.BytesIO(header + bytes(4096))) as archive:
        found = archive.next()
    assert found is not None
    assert (found.name, found.size, found.mtime, found.mode) == (name, size, MTIME, 0o600)


def test_the_system_s_tar_lists_an_archive(tmp_path: os.PathLike[str]) -> None:
    import subprocess

    shelf, checkpoint = a_shelf(signatures=1)
    listed = subprocess.run(
        ["tar", "--list", "--file=-"],
        input=unpacked(archive_of(shelf, checkpoint)),
        capture_output=True,
        check=True,
    )
    assert listed.stdout.decode().split() == [
        "ckpt-archive",
        "manifest",
        "signatures/0",
        *(f"files/{number}" for number in range(5)),
    ]
    assert listed.stderr == b""
