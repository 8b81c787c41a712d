"""Damage to the small documents: config, receipts, signatures, tag marks."""

from __future__ import annotations

import hashlib

from raw import document, put_document, put_signature
from recipes import (
    CORRUPT,
    FORMAT,
    MISSING,
    UNTRUSTED,
    WRONG_KEY,
    Base,
    Change,
    Expected,
    Sets,
    cut,
    delete,
    everywhere,
    flip,
    newer_frame,
    put,
    swap,
    told,
)

from ckpt.codec.frame import Kind
from ckpt.store import layout
from ckpt.units import CheckpointId, Digest

STRANGER = hashlib.sha256(b"images: a stranger's key").digest()


def config_sets(base: Base) -> int:
    sets = Sets(base)
    content = document(base, "config", Kind.CONFIG)
    value = content["value"]

    def add(name: str, about: str, change: Change, error: Expected, says: str) -> None:
        sets.add(f"config-{name}", about, [change], expect=everywhere(error | {"says": says}))

    def with_value(**fields: object) -> Change:
        return put_document(base, "config", Kind.CONFIG, content | {"value": value | fields})

    def encrypted(**fields: object) -> Change:
        encryption = {"kdf_salt": "00" * 32, "kdf_cost_log2": 10, "wrapped_key": "00" * 48}
        return with_value(encryption=encryption | fields)

    add("gone", "the config is deleted", delete("config"), MISSING, "has no object config")
    add("empty", "the config has no bytes", cut("config", 0), CORRUPT, "0 bytes are too few")
    add("cut", "it is cut off in its body", cut("config", 50), CORRUPT, "should follow the header, and 18 do")
    add(
        "header-flipped",
        "a bit of the header is flipped",
        flip("config", 13),
        CORRUPT,
        "check sum of its header",
    )
    add("body-flipped", "a bit of the body is flipped", flip("config", 60), CORRUPT, "check sum of its body")
    manifest = layout.manifest(base.older)
    add(
        "swapped",
        "it changed places with a manifest",
        swap("config", manifest),
        CORRUPT,
        "it is marked b'MANI'",
    )
    newer = put_document(base, "config", Kind.CONFIG, content | {"version": 3})
    add("newer", "the store is of version 3", newer, FORMAT, "in version 3, and this ckpt reads version 2")
    frame = put("config", newer_frame(base.raw("config")))
    add("newer-frame", "version 2 of the frame", frame, FORMAT, "version 2 of the frame")
    git = put("config", b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n")
    add("of-git", "another program's config", git, FORMAT, "not with ckpt's mark")
    add(
        "huge-cost",
        "a key that takes scrypt 1 TiB to open",
        encrypted(kdf_cost_log2=30),
        CORRUPT,
        "kdf_cost_log2: 30 is not between 10 and 20",
    )
    add(
        "short-salt",
        "a salt of 2 bytes",
        encrypted(kdf_salt="0000"),
        CORRUPT,
        "kdf_salt: '0000' is not 32 bytes",
    )
    add(
        "no-hex",
        "a key that is no hexadecimal",
        encrypted(wrapped_key="x" * 96),
        CORRUPT,
        "wrapped_key: 'xxx",
    )
    add(
        "encrypted",
        "it says that the store is encrypted, which it is not",
        encrypted(),
        WRONG_KEY,
        "no key was given",
    )
    sets.add(
        "config-unsigned-allowed",
        "somebody cleared signatures_required and took the signatures: the host demands them still",
        [with_value(signatures_required=False), delete(base.signature_name(base.newest))],
        expect={"restore": UNTRUSTED | {"says": "nobody has signed it"}},
    )
    return sets.write("config")


def receipt_sets(base: Base) -> int:
    sets = Sets(base)
    name, other = layout.receipt(base.newest), layout.receipt(base.older)
    content = document(base, name, Kind.RECEIPT)

    def add(which: str, about: str, change: Change, error: Expected, says: str) -> None:
        sets.add(f"receipt-{which}", about, [change], verify=[told(error, name, says)])

    sets.add("receipt-gone", "a receipt is deleted", [delete(name)])
    add("empty", "a receipt has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add("cut", "a receipt is cut off", cut(name, 40), CORRUPT, "should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add("flipped", "a bit of the body is flipped", flip(name, 60), CORRUPT, "check sum of its body")
    newer = put_document(base, name, Kind.RECEIPT, content | {"version": 3})
    add("newer", "version 3 of the receipt", newer, FORMAT, "it is written in version 3")
    lie = put_document(base, name, Kind.RECEIPT, content | {"value": content["value"] | {"job": "other"}})
    add("lying-job", "another job than the manifest's", lie, CORRUPT, "it belongs to another checkpoint")
    huge = content["value"] | {"packs_stored_bytes": 1 << 63}
    add(
        "huge",
        "it says that the checkpoint took 8 EiB and more",
        put_document(base, name, Kind.RECEIPT, content | {"value": huge}),
        CORRUPT,
        "packs_stored_bytes: 9223372036854775808 is not between",
    )
    sets.add(
        "receipt-swapped",
        "two receipts changed places",
        [swap(name, other)],
        verify=[told(CORRUPT, found, "it belongs to another checkpoint") for found in (name, other)],
    )
    return sets.write("receipt")


def signature_sets(base: Base) -> int:
    sets = Sets(base)
    name, other = base.signature_name(base.newest), base.signature_name(base.older)
    content = document(base, name, Kind.SIGNATURE)
    unsigned = UNTRUSTED | {"says": "nobody has signed it"}

    def add(which: str, about: str, change: Change, error: Expected, says: str) -> None:
        sets.add(
            f"signature-{which}",
            about,
            [change],
            expect={"restore": unsigned},
            verify=[told(error, name, says)],
        )

    def with_value(**fields: object) -> Change:
        return put_document(base, name, Kind.SIGNATURE, content | {"value": content["value"] | fields})

    sets.add("signature-gone", "the signature is deleted", [delete(name)], expect={"restore": unsigned})
    add("empty", "the signature has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add("cut", "the signature is cut off", cut(name, 100), CORRUPT, "should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add("flipped", "a bit of the body is flipped", flip(name, 100), CORRUPT, "check sum of its body")
    newer = put_document(base, name, Kind.SIGNATURE, content | {"version": 2})
    add("newer", "version 2 of the signature", newer, FORMAT, "it is written in version 2")
    sets.add(
        "signature-swapped",
        "the signatures of two checkpoints changed places",
        [swap(name, other)],
        expect={"restore": unsigned},
        verify=[told(CORRUPT, found, "it was given to the checkpoint") for found in (name, other)],
    )
    add(
        "replayed",
        "the signature of another checkpoint, made to say that it is of this one",
        put_document(
            base,
            name,
            Kind.SIGNATURE,
            document(base, other, Kind.SIGNATURE)
            | {
                "value": document(base, other, Kind.SIGNATURE)["value"]
                | {"checkpoint": bytes.fromhex(base.newest)}
            },
        ),
        CORRUPT,
        "the key that it names has not made it",
    )
    add(
        "later",
        "made to say that it was made later",
        with_value(signed_ns=content["value"]["signed_ns"] + 1),
        CORRUPT,
        "the key that it names has not made it",
    )
    add(
        "of-another-key",
        "a signature that names another key than its name",
        with_value(public_key="ab" * 32),
        CORRUPT,
        f"it names the key {'ab' * 32}",
    )
    add(
        "no-hex",
        "a signature that is no hexadecimal",
        with_value(signature="x" * 128),
        CORRUPT,
        "signature: 'xxx",
    )
    add(
        "short",
        "a signature of 2 bytes",
        with_value(signature="abcd"),
        CORRUPT,
        "signature: 'abcd' is not 64 bytes",
    )
    sets.add(
        "signature-of-a-stranger",
        "a right signature, but of a key that nobody trusts",
        [delete(name), put_signature(base, base.newest, STRANGER)],
        expect={"restore": UNTRUSTED | {"says": "which this host does not trust"}},
    )
    sets.add(
        "signature-of-two",
        "a stranger's signature beside the right one: the right one counts",
        [put_signature(base, base.newest, STRANGER)],
    )
    return sets.write("signature")


def tag_sets(base: Base) -> int:
    sets = Sets(base)
    name = base.tag_name("stable", base.newest)
    other = base.tag_name("before-upgrade", base.older)
    content = document(base, name, Kind.TAG)

    def add(which: str, about: str, change: Change, error: Expected, says: str) -> None:
        sets.add(f"tag-{which}", about, [change], verify=[told(error, name, says)], restore="stable")

    def mark(tag: str, serial: int, checkpoint: CheckpointId) -> Change:
        value = {"tag": tag, "serial": serial, "checkpoint": bytes.fromhex(checkpoint)}
        return put_document(
            base, base.tag_name(tag, checkpoint, serial), Kind.TAG, content | {"value": value}
        )

    gone = CheckpointId(Digest("ab" * 32))
    missing = MISSING | {"says": "has no checkpoint stable"}
    sets.add(
        "tag-gone", "a tag mark is deleted", [delete(name)], expect={"restore": missing}, restore="stable"
    )
    add("empty", "a tag mark has no bytes", cut(name, 0), CORRUPT, "0 bytes are too few")
    add("cut", "a tag mark is cut off", cut(name, 40), CORRUPT, "should follow the header")
    add(
        "header-flipped", "a bit of the header is flipped", flip(name, 13), CORRUPT, "check sum of its header"
    )
    add("flipped", "a bit of the body is flipped", flip(name, 60), CORRUPT, "check sum of its body")
    newer = put_document(base, name, Kind.TAG, content | {"version": 2})
    add("newer", "version 2 of the tag mark", newer, FORMAT, "it is written in version 2")
    sets.add(
        "tag-swapped",
        "two tag marks changed places: their names count",
        [swap(name, other)],
        verify=[
            told(CORRUPT, found, "its content does not say what its name says") for found in (name, other)
        ],
        restore="stable",
    )
    sets.add(
        "tag-of-nothing",
        "a mark of a checkpoint that is gone, as a crash may leave it",
        [mark("lost", 1, gone)],
        expect={"restore": MISSING | {"says": "has no checkpoint lost"}},
        restore="lost",
    )
    sets.add(
        "tag-twice",
        "an older mark of the tag beside a newer one, as a crash may leave it: the newer counts",
        [mark("stable", 2, base.older), delete(layout.manifest(base.newest))],
        restore="stable",
    )
    return sets.write("tag")
