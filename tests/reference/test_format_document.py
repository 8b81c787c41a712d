"""images/FORMAT.md says what the code does: its tables are compared, its rules are cited rightly."""

from __future__ import annotations

import dataclasses
import re
import typing
from enum import StrEnum
from pathlib import Path

from ckpt import units
from ckpt.codec import limits
from ckpt.codec.frame import FRAME_VERSION, HEADER_BYTES, MAGIC, Compression, Kind
from ckpt.codec.objects import CONFIG, MANIFEST, RECEIPT, TAG_MARK
from ckpt.codec.packed import Scalar

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "images/FORMAT.md").read_text()

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


def tables_in_the_document() -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for section in FORMAT.split("\n#### ")[1:]:
        name, _, text = section.partition("\n")
        found[name] = re.findall(r"^\| ([a-z_]+) \| ([^|]+?) \|", text.partition("\n## ")[0], re.MULTILINE)[
            1:
        ]
    return found


def test_the_fields_of_every_record_are_those_of_the_program() -> None:
    found: dict[str, Rows] = {}
    for document in (CONFIG, RECEIPT, TAG_MARK, MANIFEST):
        described(document.content, found)
    assert tables_in_the_document() == found


def test_the_limits_are_those_of_the_program() -> None:
    stated = {
        name: int(value) for name, value in re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", FORMAT, re.MULTILINE)
    }
    assert stated == {name: value for name, value in vars(limits).items() if name.isupper()}


def test_the_versions_are_those_of_the_program() -> None:
    assert {document.version for document in (CONFIG, RECEIPT, TAG_MARK, MANIFEST)} == {1}
    assert FRAME_VERSION == 1
    assert "**Version 1.**" in FORMAT


def test_the_header_is_as_described() -> None:
    assert f"`{MAGIC.hex(' ')}`" in FORMAT
    assert f"header of {HEADER_BYTES} bytes" in FORMAT
    assert all(f'"{kind.value.decode()}"' in FORMAT for kind in Kind)
    assert {compression.value for compression in Compression} == {0, 1}
    assert set(typing.get_args(Scalar)) == {bool, int, str, bytes, type(None)}


def test_every_rule_has_one_number_and_every_number_that_is_cited_is_a_rule() -> None:
    rules = re.findall(r"^\* \*\*F(\d+)\*\*", FORMAT, re.MULTILINE)
    assert len(rules) == len(set(rules))
    assert rules == sorted(rules, key=int)
    cited = set(re.findall(r"\bF(\d+)\b", FORMAT))
    for path in [*ROOT.glob("ckpt/codec/*.py"), *ROOT.glob("ckpt/store/*.py")]:
        cited |= set(re.findall(r"\bF(\d+)\b", path.read_text()))
    assert cited <= set(rules)
