"""What two ckpts say to each other: framed messages, bounded before anything is allocated.

    GREETING = MARK HELLO            what the agent says first, and the other side answers HELLO
    FRAME    = LENGTH PAYLOAD        32 bits, big endian
    PAYLOAD  = {"message": KIND, "value": VALUE}   msgpack, as the documents of a store

Those of a migration stand in migration_messages.py; after some of them bytes follow that are no frame.

Rules:
- What stands before the mark is not ours: a login may print what it likes. It is bounded, and dropped.
- What the other side sends is hostile until it is decoded: only the kinds that may come next are read, only into
  types of the model, and nothing is allocated that was not sent.
- Both name the protocols that they speak, and both take the highest that is common. HELLO never changes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeVar

from ckpt.codec.limits import DOCUMENT_BYTES_MAX
from ckpt.codec.migration_messages import MIGRATION_KINDS, MigrationMessage, Offer
from ckpt.codec.migration_rules import check_migration
from ckpt.codec.names import refuse_absolute_path
from ckpt.codec.packed import Reader, Refused, pack
from ckpt.codec.shapes import shape_of
from ckpt.errors import NoCommonProtocol, PeerFailed
from ckpt.model.checkpoint import HostFacts
from ckpt.model.checks import HostCheck
from ckpt.model.findings import Finding
from ckpt.model.inodes import lie_of
from ckpt.model.needs import Needs
from ckpt.units import PAGE_BYTES

PROTOCOLS: Final = (1, 2)
"""The protocols that this ckpt speaks. Protocol 2: workloads move, and both sides say that they are alive."""

MIGRATION_PROTOCOL: Final = 2
"""The first protocol with the messages of migration_messages.py."""

MARK: Final = b"\x89ckpt-agent\r\n\x1a\n"
"""What no login prints by chance."""

BEFORE_MARK_BYTES_MAX: Final = 64 << 10
HELLO_BYTES_MAX: Final = 4096
MESSAGE_BYTES_MAX: Final = DOCUMENT_BYTES_MAX
_LENGTH: Final = struct.Struct(">I")

Read = Callable[[int], bytes]
"""Gives at most so many bytes as they come, at least one, or none at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who speaks: the protocols, the version of ckpt, and the host's name."""

    protocols: tuple[int, ...]
    version: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFacts:
    """What is your host, and what can it do?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskNeeds:
    """What speaks against these needs on your host?"""

    needs: Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Nothing else is to be said at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The answer to AskFacts."""

    host: HostFacts
    checks: tuple[HostCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The answer to AskNeeds."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The answer where there is none: an error of the other side."""

    slug: str
    message: str
    hint: str
    exit_code: int


Message = Hello | AskFacts | AskNeeds | Alive | Facts | Findings | Failed | MigrationMessage
Wanted = TypeVar("Wanted", bound=Message)

_KINDS: Final[dict[str, type[Message]]] = {
    "hello": Hello,
    "ask-facts": AskFacts,
    "ask-needs": AskNeeds,
    "alive": Alive,
    "facts": Facts,
    "findings": Findings,
    "failed": Failed,
    **MIGRATION_KINDS,
}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        PeerFailed: it is larger than any that may be sent.
    """
    kind = type(message)
    try:
        payload = pack({"message": _NAMES[kind], "value": shape_of(kind).write(message)})
    except Refused as refused:
        raise _nonsense("here", refused) from None
    bound = HELLO_BYTES_MAX if kind is Hello else MESSAGE_BYTES_MAX
    if len(payload) > bound:
        raise PeerFailed(host="here", reason=f"a message of {len(payload)} bytes, and {bound} is the most")
    return _LENGTH.pack(len(payload)) + payload


def decode(payload: bytes, expected: Collection[type[Wanted]], peer: str) -> Wanted:
    """The message of a frame's payload, which must be of one of the expected kinds.

    Raises:
        PeerFailed: it is not; says where it goes wrong.
    """
    try:
        value = _read(payload, expected)
    except Refused as refused:
        raise _nonsense(peer, refused) from None
    return value


def read_message(read: Read, expected: Collection[type[Wanted]], peer: str) -> Wanted | None:
    """The next message of a stream; None if the stream ends before it begins.

    Raises:
        PeerFailed: what comes is no message, is not one of the expected ones, or ends within it.
    """
    first = read(1)
    if not first:
        return None
    (length,) = _LENGTH.unpack(first + _read_exactly(read, _LENGTH.size - 1, peer))
    bound = HELLO_BYTES_MAX if set(expected) == {Hello} else MESSAGE_BYTES_MAX
    if length > bound:
        raise PeerFailed(
            host=peer, reason=f"it announces a message of {length} bytes, and {bound} is the most"
        )
    return decode(_read_exactly(read, length, peer), expected, peer)


def skip_to_mark(read: Read, peer: str) -> None:
    """Read up to the mark, and drop what a login printed before it.

    Raises:
        PeerFailed: the mark does not come.
    """
    window = b""
    for _ in range(BEFORE_MARK_BYTES_MAX):
        byte = read(1)
        if not byte:
            raise PeerFailed(host=peer, reason="it ended before it said who it is")
        window = (window + byte)[-len(MARK) :]
        if window == MARK:
            return
    raise PeerFailed(
        host=peer,
        reason=f"it said {BEFORE_MARK_BYTES_MAX} bytes, and not who it is",
        remedy="Let the login there print less, or nothing, where there is no terminal.",
    )


def common_protocol(theirs: Hello, peer: str) -> int:
    """The highest protocol that both speak.

    Raises:
        NoCommonProtocol: there is none; names both offers.
    """
    common = set(PROTOCOLS) & set(theirs.protocols)
    if not common:
        raise NoCommonProtocol(
            host=peer,
            reason=f"this one speaks the protocols {_listed(PROTOCOLS)}, and ckpt {theirs.version} there "
            f"{_listed(theirs.protocols)}",
            remedy="Install the same version of ckpt on both hosts.",
        )
    return max(common)


def _read(payload: bytes, expected: Collection[type[Wanted]]) -> Wanted:
    reader = Reader(payload)
    if reader.entries() != 2:
        raise Refused("it is no message: a kind and a value belong there")
    _expect(reader, "message")
    name = reader.scalar()
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None or kind not in expected:
        wanted = ", ".join(name for name, each in _KINDS.items() if each in expected)
        raise Refused(f"{str(name)[:80]!r} where one of {wanted} belongs")
    _expect(reader, "value")
    value: Wanted = shape_of(kind).read(reader)
    reader.end()
    if isinstance(value, AskNeeds | Offer):
        _check_needs(value.needs)
    check_migration(value)
    return value


def _check_needs(needs: Needs) -> None:
    """Refuse what no host can have said."""
    for number, port in enumerate(needs.ports):
        if not 0 <= port.port <= 0xFFFF:
            raise Refused(f"{port.port} is no port").inside(f"needs.ports[{number}].port")
        # A name would be asked of whoever the resolver asks.
        if not _is_address(port.address):
            raise Refused("this is no address").inside(f"needs.ports[{number}].address")
    for number, pages in enumerate(needs.huge_pages):
        if pages.page_bytes < PAGE_BYTES or pages.count < 0:
            raise Refused("these are no huge pages").inside(f"needs.huge_pages[{number}]")
    for number, record in enumerate(needs.files):
        if lie := lie_of(record):
            raise Refused(lie).inside(f"needs.files[{number}]")
    places = [("mounts", mount.mountpoint) for mount in needs.mounts]
    places += [("volumes", volume.mountpoint) for volume in needs.volumes]
    places += [("names", name.name) for name in needs.names if not name.is_abstract]
    places += [("cgroups", cgroup.path) for cgroup in needs.cgroups if cgroup.path != "/"]
    for field, path in places:
        if path != "/" and (reason := refuse_absolute_path(path)):
            raise Refused(reason).inside(f"needs.{field}")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _read_exactly(read: Read, count: int, peer: str) -> bytes:
    # It grows as it comes: a length that lies costs no memory.
    content = bytearray()
    while len(content) < count:
        piece = read(min(count - len(content), 1 << 16))
        if not piece:
            raise PeerFailed(host=peer, reason=f"a message ended after {len(content)} of {count} bytes")
        content += piece
    return bytes(content)


def _expect(reader: Reader, key: str) -> None:
    found = reader.scalar()
    if found != key:
        raise Refused(f"the field {str(found)[:80]!r} where {key!r} belongs")


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:16])) or "none"


def _nonsense(peer: str, refused: Refused) -> PeerFailed:
    where = f"{refused.path}: " if refused.path else ""
    return PeerFailed(
        host=peer,
        reason=f"a message cannot be read: {where}{refused.reason}",
        remedy="Install the same version of ckpt on both hosts.",
    )
