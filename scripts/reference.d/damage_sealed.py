"""Damage to an encrypted store, and what somebody may try who lacks its key."""

from __future__ import annotations

from raw import document, packed
from recipes import (
    CORRUPT,
    UNTRUSTED,
    WRONG_KEY,
    Base,
    Change,
    Expected,
    Sets,
    cut,
    everywhere,
    flip,
    put,
    swap,
    told,
)

from ckpt.codec.frame import HEADER_BYTES, Kind
from ckpt.codec.pack import TRAILER
from ckpt.store import layout
from ckpt.store.compress import to_object

CLOSED = "the store's key does not open it"
PLAIN = "it is not encrypted, as no object of this store is"


def sealed_sets(base: Base, plain: Base) -> int:
    sets = Sets(base)
    _config(base, plain, sets)
    _documents(base, sets)
    _packs(base, plain, sets)
    return sets.write("sealed")


def _config(base: Base, plain: Base, sets: Sets) -> None:
    content = document(plain, "config", Kind.CONFIG)
    mine = to_object(Kind.CONFIG, packed(content))
    says = "it is encrypted, as no object of this store is"
    error = CORRUPT | {"says": says}
    ids = (base.newest, base.older)
    sealed = [
        *ids,
        *base.pack_names(),
        *(base.signature_name(checkpoint) for checkpoint in ids),
        base.tag_name("before-upgrade", base.older),
        *(base.tag_name(tag, base.newest) for tag in ("latest", "stable")),
    ]
    sets.add(
        "sealed-config-of-a-plain-store",
        "the config of a plain store: no object of it is read as one",
        [put("config", mine)],
        expect={"list": error, "restore": error, "sweep": error},
        verify=[told(CORRUPT, found, "") for found in sealed],
        cure=list(ids),
    )


def _documents(base: Base, sets: Sets) -> None:
    tags = (base.tag_name("stable", base.newest), base.tag_name("before-upgrade", base.older))
    manifests = (layout.manifest(base.newest), layout.manifest(base.older))
    placements = (base.placement_name(base.newest), base.placement_name(base.older))
    receipts = (layout.receipt(base.newest), layout.receipt(base.older))
    signatures = (base.signature_name(base.newest), base.signature_name(base.older))
    ids = (base.newest, base.older)
    unsigned = UNTRUSTED | {"says": "nobody has signed it"}
    kinds: tuple[tuple[Kind, tuple[str, str], tuple[str, str], tuple[str, ...], Expected | None], ...] = (
        (Kind.MANIFEST, manifests, ids, ("list", "restore"), None),
        (Kind.PLACEMENT, placements, ids, ("restore", "sweep"), None),
        (Kind.RECEIPT, receipts, receipts, (), None),
        (Kind.SIGNATURE, signatures, signatures, ("restore",), unsigned),
        (Kind.TAG, tags, tags, (), None),
    )
    for kind, (name, other), (subject, other_subject), uses, error in kinds:

        def add(
            which: str,
            about: str,
            change: Change,
            says: str,
            *more: str,
            called: str = str(kind),
            uses: tuple[str, ...] = uses,
            subject: str = subject,
            error: Expected | None = error,
        ) -> None:
            sets.add(
                f"sealed-{called}-{which}",
                about,
                [change],
                expect=dict.fromkeys(uses, error or CORRUPT | {"says": says}),
                verify=[told(CORRUPT, found, says) for found in (subject, *more)],
                cure=[base.newest, *more] if "sweep" in uses else [],
            )

        content = base.raw(name)
        flipped = len(content) - 3
        add(
            "swapped",
            "two of them changed places: each opens only under its name",
            swap(name, other),
            CLOSED,
            other_subject,
        )
        add("plain", "somebody put a plain one", put(name, to_object(kind, base.plain(name, kind))), PLAIN)
        add("cut", "it is cut off", cut(name, len(content) - 1), "bytes should follow the header")
        by_content = kind.named_by_content
        add(
            "flipped",
            "a bit is flipped",
            flip(name, flipped),
            CLOSED if by_content else "check sum of its body",
        )
    # The check sum of the body is no secret: who changes an object makes it anew.
    name = base.signature_name(base.newest)
    content = bytearray(base.raw(name))
    content[HEADER_BYTES] ^= 1
    sets.add(
        "sealed-signature-salt",
        "another salt, with the check sum made anew",
        [put(name, _with_check(bytes(content)))],
        expect={"restore": unsigned},
        verify=[told(CORRUPT, name, CLOSED)],
    )


def _with_check(content: bytes) -> bytes:
    import zlib

    start = content[:24] + zlib.crc32(content[HEADER_BYTES:]).to_bytes(4, "big")
    return start + zlib.crc32(start).to_bytes(4, "big") + content[HEADER_BYTES:]


def _packs(base: Base, plain: Base, sets: Sets) -> None:
    first, second = base.pack_names()
    name, other = layout.pack(second), layout.pack(first)
    content = base.raw(name)
    (list_bytes,) = TRAILER.unpack(content[-TRAILER.size :])

    def add(which: str, about: str, change: Change, says: str, *more: str) -> None:
        sets.add(
            f"sealed-pack-{which}",
            about,
            [change],
            expect={"restore": CORRUPT | {"says": says}},
            verify=[told(CORRUPT, found, says) for found in (second, *more)],
        )

    add("blob-flipped", "a bit of a blob is flipped", flip(name, 300), CLOSED)
    listed = flip(name, len(content) - TRAILER.size - list_bytes // 2)
    add("list-flipped", "a bit of the list is flipped", listed, CLOSED)
    add("salt-flipped", "a bit of the salt is flipped", flip(name, 40), CLOSED)
    add("swapped", "two packs changed places", swap(name, other), "bytes, and", first)
    _, of_plain = plain.pack_names()
    add("plain", "a plain pack in its place", put(name, plain.raw(layout.pack(of_plain))), "bytes, and")
    index = base.index_names()[0]
    sets.add(
        "sealed-index-flipped",
        "a bit of an index is flipped, which is not sealed: its marks are keyed",
        [flip(index, 60)],
        verify=[told(CORRUPT, index, "check sum of its body")],
    )
    value = document(base_config(base), "config", Kind.CONFIG)
    encryption = value["value"]["encryption"]
    wrapped = encryption["wrapped_key"]
    changed = wrapped[:-1] + ("0" if wrapped[-1] != "0" else "1")
    content_ = value | {"value": value["value"] | {"encryption": encryption | {"wrapped_key": changed}}}
    error = WRONG_KEY | {"says": "the key that was given is not its key"}
    sets.add(
        "sealed-config-other-key",
        "a digit of the wrapped key is another",
        [put("config", to_object(Kind.CONFIG, packed(content_)))],
        expect=everywhere(error),
    )
    freed = value | {"value": value["value"] | {"signatures_required": False}}
    sets.add(
        "sealed-config-unsigned-allowed",
        "somebody cleared signatures_required, which nothing protects: the host demands them still",
        [
            put("config", to_object(Kind.CONFIG, packed(freed))),
            {"do": "delete", "object": base.signature_name(base.newest)},
        ],
        expect={"restore": UNTRUSTED | {"says": "nobody has signed it"}},
    )


def base_config(base: Base) -> Base:
    """The store as somebody without its key sees it: the config alone can be read."""
    found = Base.__new__(Base)
    found.base, found.place = base.base, base.place
    from ckpt.store.vault import Vault

    found.vault = Vault()
    return found
