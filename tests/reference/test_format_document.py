"""images/FORMAT.md says what the code does: its tables are compared, its rules are cited rightly."""

from __future__ import annotations

import dataclasses
import re
import struct
import typing
from enum import StrEnum
from pathlib import Path

from ckpt import units
from ckpt.codec import frame, hooks, limits, pack, placement
from ckpt.codec.frame import FRAME_VERSION, HEADER_BYTES, MAGIC, SALT_BYTES, Compression, Kind
from ckpt.codec.objects import CONFIG, MANIFEST, RECEIPT, SIGNATURE, TAG_MARK, RootDigest, digest_of
from ckpt.codec.packed import Scalar
from ckpt.codec.records import Signature
from ckpt.store import building, layout, packs, repacking, sealing, similar

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "images/FORMAT.md").read_text()

DOCUMENTS = (CONFIG, RECEIPT, TAG_MARK, SIGNATURE, MANIFEST)

WORDS = {
    bool: "truth",
    int: "number",
    str: "text",
    units.ByteCount: "size",
    units.Nanoseconds: "ns",
    units.Pid: "pid",
    units.InodeNumber: "u64",
    units.DeviceNumber: "u64",
    units.Digest: "digest",
    units.CheckpointId: "digest",
    units.JobName: "label",
    units.Tag: "label",
}

LAYOUTS = {
    "Header": frame._HEADER,
    "Pack list": pack._COUNT,
    "Blob entry": pack._ENTRY,
    "Placement head": placement._HEAD,
    "Pack reference": placement._PACK,
    "Placed file": placement._FILE,
    "Layer": placement._RUNS,
    "Address space": placement._SPACE,
    "Index head": hooks.HEAD,
}

FIGURES = {
    "PACK_CHUNKS": building.PACK_CHUNKS,
    "DENSE_CHUNKS": building.DENSE_CHUNKS,
    "RECENT_CHUNKS": similar.RECENT_CHUNKS,
    "CHAMPIONS": similar.CHAMPIONS,
    "BLOB_BYTES_KEPT": packs.BLOB_BYTES_KEPT,
}

Rows = list[tuple[str, str]]


def described(type_: typing.Any, found: dict[str, Rows]) -> str:
    """What FORMAT.md calls the type; the records below it are added to `found`."""
    if type_ in WORDS:
        return WORDS[type_]
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        return f"one of {', '.join(type_)}"
    if dataclasses.is_dataclass(type_):
        name = typing.cast("type", type_).__name__
        if name not in found:
            found[name] = []
            hints = typing.get_type_hints(type_)
            fields = [field.name for field in dataclasses.fields(type_)]
            found[name] += [(field, described(hints[field], found)) for field in fields]
        return name
    inner = described(typing.get_args(type_)[0], found)
    return f"list of {inner}" if typing.get_origin(type_) is tuple else f"{inner} or nothing"


def section(name: str) -> str:
    """The text below a heading, up to the next one of any level."""
    match = re.search(rf"^\s*#+ {re.escape(name)}\n(.*?)(?=^\s*#+ |\Z)", FORMAT, re.MULTILINE | re.DOTALL)
    assert match, name
    return match[1]


def tables_in_the_document() -> dict[str, Rows]:
    names = re.findall(r"^#### (\w+)$", FORMAT, re.MULTILINE)
    return {
        name: re.findall(r"^\| ([a-z_0-9]+) \| ([^|]+?) \|", section(name), re.MULTILINE)[1:]
        for name in names
    }


def constants_in(text: str) -> dict[str, int]:
    found = re.findall(r"^\| ([A-Z_0-9]+) \| (\d+) \|", text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def test_the_fields_of_every_record_are_those_of_the_program() -> None:
    found: dict[str, Rows] = {}
    for document in DOCUMENTS:
        for content in (document.content, *document.older.values()):
            described(content, found)
    assert tables_in_the_document() == found


def test_the_limits_are_those_of_the_program() -> None:
    assert constants_in(section("Limits")) == {
        name: value for name, value in vars(limits).items() if name.isupper()
    }
    assert (limits.KDF_COST_LOG2_MIN, limits.KDF_COST_LOG2_MAX) == (
        sealing.KDF_COST_LOG2_MIN,
        sealing.KDF_COST_LOG2_MAX,
    )


def test_the_figures_are_those_of_the_program() -> None:
    assert constants_in(section("Figures")) == FIGURES
    assert repacking.WASTE_MAX == 0.5
    assert "of which at least half of the blobs' bytes" in FORMAT
    assert units.CHUNK_BYTES == 4096
    assert hooks.SAMPLE_MASK == 0b111111
    assert f"uses the cost {sealing.KDF_COST_LOG2}" in FORMAT


def test_the_layouts_of_bytes_are_those_of_the_program() -> None:
    for name, fields in LAYOUTS.items():
        rows = re.findall(r"^\s*\| (\d+) \| (\d+) \| [a-z ]+ \|", section(name), re.MULTILINE)
        sizes = [struct.calcsize(f">{code}") for code in re.findall(r"\d*[a-zA-Z]", fields.format)]
        offsets = [sum(sizes[:place]) for place in range(len(sizes))]
        assert [(int(offset), int(size)) for offset, size in rows] == list(zip(offsets, sizes, strict=True))
    assert f"| {SALT_BYTES} | salt" in section("Pack")
    assert f"| {pack.TRAILER.size} | trailer" in section("Pack")
    assert (hooks.NAME_BYTES, hooks.MARK_BYTES, hooks.PLACE_BYTES) == (32, 8, 4)


def test_the_versions_are_those_of_the_program() -> None:
    stated = ", ".join(
        f"{document.kind} {document.version}" for document in (CONFIG, MANIFEST, RECEIPT, TAG_MARK, SIGNATURE)
    )
    assert f"Today: {stated}." in FORMAT
    assert FRAME_VERSION == 1
    assert f"**Version {CONFIG.version}.**" in FORMAT


def test_the_header_is_as_described() -> None:
    assert f"`{MAGIC.hex(' ')}`" in FORMAT
    assert f"header of {HEADER_BYTES} bytes" in FORMAT
    assert all(f'"{kind.value.decode()}"' in FORMAT for kind in Kind)
    assert all(f'"{document.kind}"' in FORMAT for document in DOCUMENTS)
    assert {compression.value for compression in Compression} == {0, 1}
    assert frame.SEALED == 1
    assert {kind.value for kind in pack.BlobKind} == {0, 1}
    assert set(typing.get_args(Scalar)) == {bool, int, str, bytes, type(None)}


def test_every_folder_is_in_the_overview() -> None:
    overview = section("Overview")
    assert all(f"    {folder}/" in overview for folder in layout.FOLDERS)


def test_roots_and_signed_messages_are_as_described() -> None:
    root = RootDigest(5)
    root.add(bytes(32))
    assert root.root() == digest_of(b"ckpt file 2\0" + (5).to_bytes(8, "big") + bytes(32))
    signature = Signature(
        checkpoint=units.CheckpointId("ab" * 32),
        public_key="",
        signature="",
        signed_ns=units.Nanoseconds(-2),
    )
    message = b"ckpt checkpoint signature 1" + b"\0" + b"\xab" * 32 + b"\xff" * 7 + b"\xfe"
    assert signature.message == message
    assert f"over {len(message)} bytes: the 27 bytes `ckpt checkpoint signature 1`" in FORMAT


def test_every_rule_has_one_number_and_every_number_that_is_cited_is_a_rule() -> None:
    rules = re.findall(r"^\* \*\*F(\d+)\*\*", FORMAT, re.MULTILINE)
    assert len(rules) == len(set(rules))
    assert rules == sorted(rules, key=int)
    cited = set(re.findall(r"\bF(\d+)\b", FORMAT))
    for path in (ROOT / "ckpt").rglob("*.py"):
        cited |= set(re.findall(r"\bF(\d+)\b", path.read_text()))
    assert cited <= set(rules)
