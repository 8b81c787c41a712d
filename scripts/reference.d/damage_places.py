"""What is no object: the lock, what writers leave behind, what strayed in."""

from __future__ import annotations

from recipes import (
    CORRUPT,
    UNUSABLE,
    Base,
    Change,
    Sets,
    delete,
    everywhere,
    link,
    make_directory,
    put,
    swap,
    told,
)


def lock_sets(base: Base) -> int:
    """Whatever the lock is, readers do not care."""
    sets = Sets(base)

    def refused(name: str, about: str, changes: list[Change], says: str) -> None:
        error = UNUSABLE | {"says": says}
        sets.add(f"lock-{name}", about, changes, expect={"write": error, "sweep": error})

    sets.add("lock-gone", "the lock is deleted: who needs it makes it", [delete("lock")])
    sets.add("lock-filled", "somebody wrote to the lock: nobody reads it", [put("lock", b"\x89ckpt" * 100)])
    error = CORRUPT | {"says": "0 bytes are too few"}
    sets.add(
        "lock-swapped",
        "it changed places with the config",
        [swap("lock", "config")],
        expect=everywhere(error),
    )
    refused(
        "is-a-directory",
        "a directory in its place",
        [delete("lock"), make_directory("lock")],
        "Is a directory",
    )
    refused(
        "is-a-link",
        "a link in its place",
        [delete("lock"), link("lock", "config")],
        "Too many levels of symbolic",
    )
    refused("tmp-is-a-file", "a file in the place of tmp", [put("tmp", b"")], "Not a directory")
    return sets.write("lock")


def stray_sets(base: Base) -> int:
    sets = Sets(base)
    for folder in (
        "packs/00",
        "manifests",
        "placements",
        "receipts",
        "signatures",
        "indexes",
        "tags",
        "chunks",
    ):
        name = f"{folder}/notes.txt"
        sets.add(
            f"stray-in-{folder.partition('/')[0]}",
            "a file that ckpt did not put there: everybody leaves it alone",
            [put(name, b"remember the milk\n")],
            verify=[told({"slug": "stray"}, name, "is no object of a store")],
        )
    sets.add("stray-at-the-top", "a file beside the config", [put("notes.txt", b"remember the milk\n")])
    sets.add(
        "stray-placement-serial",
        "a placement whose serial is not written with eight digits",
        [put(f"placements/{base.newest}@2", b"x")],
        verify=[told({"slug": "stray"}, f"placements/{base.newest}@2", "is no object of a store")],
    )
    sets.add(
        "stray-placement-serial-too-high",
        "a placement whose serial has more digits than any that ckpt writes: it does not count",
        [put(f"placements/{base.newest}@{'9' * 136}", b"x")],
        verify=[told({"slug": "stray"}, f"placements/{base.newest}@{'9' * 136}", "is no object of a store")],
    )
    sets.add(
        "stray-tag-serial-too-high",
        "the same of a tag mark",
        [put(f"tags/stable@100000000@{base.older}", b"x")],
        verify=[told({"slug": "stray"}, f"tags/stable@100000000@{base.older}", "is no object of a store")],
        restore="stable",
    )
    sets.add(
        "stray-half-object",
        "what a writer left that died: the next sweep removes it",
        [put("tmp/4242-00", b"half")],
    )
    sets.add(
        "stray-lease",
        "the lease of a dead process, which pins nothing any more, with names that climb",
        [put("tmp/lease-4242-00", b"packs/ab/../../config\n\xff\n")],
    )
    return sets.write("stray")
