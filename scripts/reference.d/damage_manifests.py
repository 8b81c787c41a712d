"""Damage to manifests, and manifests that lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raw import Document, changed, packed, put_manifest, put_placement, put_signature
from recipes import CORRUPT, FORMAT, MISSING, Base, Change, Expected, Sets, cut, delete, flip, swap, told

from ckpt.store import layout


def manifest_sets(base: Base) -> int:
    sets = Sets(base)
    _broken(base, sets)
    _written(base, sets)
    _lying(base, sets)
    return sets.write("manifest")


def _broken(base: Base, sets: Sets) -> None:
    """Manifests that were good. What they need is known from their placements, so that sweeps go on."""
    name, other = layout.manifest(base.newest), layout.manifest(base.older)
    size = len(base.raw(name))

    def add(which: str, about: str, change: Change, says: str) -> None:
        error = CORRUPT | {"says": says}
        expect = {"list": error, "restore": error}
        sets.add(
            f"manifest-{which}", about, [change], expect=expect, verify=[told(CORRUPT, base.newest, says)]
        )

    gone = MISSING | {"says": f"has no checkpoint {base.newest}"}
    sets.add(
        "manifest-gone",
        "a manifest is deleted: its checkpoint does not exist, and what belonged to it is garbage",
        [delete(name)],
        expect={"restore": gone},
    )
    sets.add(
        "manifest-parent-gone",
        "the parent's manifest is deleted: nobody follows parents, and deltas need packs alone",
        [delete(other)],
    )
    add("empty", "a manifest has no bytes", cut(name, 0), "0 bytes are too few")
    add("cut", "a manifest is cut off", cut(name, size - 1), f"{size - 32} bytes should follow the header")
    add(
        "header-flipped",
        "a bit of the version: damage, not a newer ckpt",
        flip(name, 13),
        "check sum of its header",
    )
    add("body-flipped", "a bit of the body is flipped", flip(name, size // 2), "")
    says = "the digest of its content is"
    error = CORRUPT | {"says": says}
    sets.add(
        "manifest-swapped",
        "two manifests changed places",
        [swap(name, other)],
        expect={"list": error, "restore": error},
        verify=[told(CORRUPT, found, says) for found in (base.older, base.newest)],
    )
    error = CORRUPT | {"says": "it is marked b'RCPT'"}
    sets.add(
        "manifest-is-a-receipt",
        "it changed places with its receipt",
        [swap(name, layout.receipt(base.newest))],
        expect={"list": error, "restore": error},
        verify=[told(CORRUPT, base.newest, "it is marked b'RCPT'")],
    )


def _written(base: Base, sets: Sets) -> None:
    """Manifests with the right digest, as an attacker or a broken ckpt may write them."""
    pages = [file.name for file in base.checkpoint.image_sets[0].files].index("pages-1.img")
    file = f"image_sets[0].files[{pages}]"

    def add(
        which: str, about: str, change: Callable[[Document], object], says: str, error: Expected = CORRUPT
    ) -> None:
        found, made = put_manifest(base, changed(base, change))
        expected = error | {"says": says}
        sets.add(
            f"manifest-{which}",
            about,
            [made],
            expect={"list": expected, "restore": expected, "sweep": expected},
            verify=[told(error, found, says)],
            restore=found,
            cure=[found],
        )

    def value(key: str, content: object) -> Callable[[Document], object]:
        return lambda document: document["value"].__setitem__(key, content)

    def pages_file(key: str, content: object) -> Callable[[Document], object]:
        return lambda document: document["value"]["image_sets"][0]["files"][pages].__setitem__(key, content)

    def carried(path: str) -> Callable[[Document], object]:
        return lambda document: document["value"]["carried_files"][0].__setitem__("path", path)

    def kept(field: str, key: str, content: object) -> Callable[[Document], object]:
        return lambda document: document["value"][field][0].__setitem__(key, content)

    def group(**changed: object) -> dict[str, object]:
        return {"name": "shop", "instant": "0123456789abcdef", "members": ["web"]} | changed

    def cgroup(key: str, content: object) -> Callable[[Document], object]:
        return lambda document: document["value"]["workload"]["cgroups"][0].__setitem__(key, content)

    def cpus(content: object) -> Callable[[Document], object]:
        return lambda document: document["value"]["settings"][0]["threads"][0].__setitem__("cpus", content)

    def root(content: object) -> Callable[[Document], object]:
        return lambda document: document["value"]["workload"]["trees"][0].__setitem__("root", content)

    def version(number: object) -> Callable[[Document], object]:
        return lambda document: document.__setitem__("version", number)

    newer = "in version 4, and this ckpt reads version 3 and older"
    add("newer", "version 4 of the manifest", version(4), newer, FORMAT)
    add("no-version", "a version that is none", version(0), "version: '0' is no version")
    add(
        "of-version-1",
        "it says that it is of version 1",
        version(1),
        "timers[0]: 1 fields too many, the first is 'absolute'",
    )
    add(
        "of-another-kind",
        "a document of another kind",
        lambda document: document.__setitem__("kind", "receipt"),
        "kind: it is a document of the kind 'receipt'",
    )
    add("no-msgpack", "no msgpack", lambda _: b"\xc1" * 64, "no msgpack that belongs here")
    add("with-a-tail", "bytes behind it", lambda d: packed(d) + b"x", "1 bytes too many at its end")
    add(
        "unknown-field",
        "a field that nobody knows",
        value("colour", "red"),
        "1 fields too many, the first is 'colour'",
    )
    add(
        "field-gone",
        "a field is missing",
        lambda document: document["value"].pop("volumes"),
        "the field 'volumes' is missing",
    )
    add(
        "wrong-type",
        "a text for a number",
        root("1"),
        "workload.trees[0].root: a text where a number belongs",
    )
    add("out-of-range", "a pid that cannot be", root(1 << 40), "trees[0].root: 1099511627776 is not between")
    add(
        "too-deep",
        "lists in lists in lists",
        value("timers", _nested(400)),
        "timers[0]: no msgpack that belongs",
    )
    add(
        "lying-count",
        "a list that claims four thousand million items",
        lambda document: (
            packed(document | {"value": document["value"] | {"group": group(members=[])}})[:-1]
            + b"\xdd\xff\xff\xff\xff"
        ),
        "group.members: a list of 4294967295 items",
    )
    add(
        "name-climbs",
        "an image file that climbs out of its directory",
        pages_file("name", "../../etc/cron.d/x"),
        f"{file}.name: '../../etc/cron.d/x' is not the plain name of a file",
    )
    add(
        "name-is-parent",
        "a file called ..",
        pages_file("name", ".."),
        f"{file}.name: '..' is not the plain name",
    )
    add(
        "name-too-long",
        "a name of 300 bytes",
        pages_file("name", "x" * 300),
        "a file name of more than 255 bytes",
    )
    add(
        "name-twice",
        "two files of one name",
        pages_file("name", "pstree.img"),
        "a second file of the name 'pstree",
    )
    add(
        "set-uid-bits",
        "a mode with type bits",
        pages_file("mode", 0o120777),
        f"{file}.mode: 0o120777 has other bits than permissions",
    )
    add(
        "negative-size",
        "a file of -1 bytes",
        pages_file("size_bytes", -1),
        f"{file}.size_bytes: -1 is not between",
    )
    add("short-root", "a root of 3 bytes", pages_file("root", b"abc"), f"{file}.root: a digest of 3 bytes")
    add(
        "carried-climbs",
        "a carried file that climbs",
        carried("/dev/shm/../../etc/shadow"),
        "carried_files[0].path: '/dev/shm/../../etc/shadow' is not an absolute path",
    )
    add(
        "carried-relative",
        "a carried file without a directory",
        carried("ring"),
        "'ring' is not an absolute path",
    )
    add(
        "saved-climbs",
        "a saved file that climbs",
        kept("saved_files", "path", "/srv/../etc/shadow"),
        "saved_files[0].path: '/srv/../etc/shadow' is not an absolute path",
    )
    add(
        "saved-device",
        "a saved file that is a device",
        kept("saved_files", "mode", 0o020666),
        "saved_files[0].mode: 0o20666 is not that of a regular file",
    )
    add(
        "volume-relative",
        "a volume that is mounted nowhere",
        kept("volumes", "mountpoint", "srv"),
        "volumes[0].mountpoint: 'srv' is not an absolute path",
    )
    add(
        "volume-of-a-path",
        "a volume whose type is a path",
        kept("volumes", "filesystem", "../ext4"),
        "volumes[0].filesystem: '../ext4' is not the plain name",
    )
    add(
        "seen-as-nothing",
        "a file that was seen under the number 0",
        kept("inodes", "seen", {"device": 1, "inode": 0}),
        "inodes[0].seen.inode: 0, which no file has",
    )
    add(
        "settings-twice",
        "settings of one process twice",
        lambda document: document["value"].update(settings=2 * document["value"]["settings"]),
        "settings[1].pid: ",
    )
    add(
        "autogroup-nicer-than-nice",
        "a nice value that there is not",
        kept("settings", "autogroup_nice", 20),
        "settings[0].autogroup_nice: 20 is not between -20 and 19",
    )
    add(
        "cpus-backwards",
        "CPUs from 3 to 2",
        cpus([{"first": 3, "last": 2}]),
        "settings[0].threads[0].cpus[0].last: 2 is not between 3 and 65535",
    )
    add(
        "cpus-without-end",
        "more CPUs than fit into memory",
        cpus([{"first": 0, "last": 1 << 40}]),
        "settings[0].threads[0].cpus[0].last: 1099511627776 is not between 0 and 65535",
    )
    add(
        "network-of-a-command",
        "a bridge whose name is a command",
        kept("networks", "parent", "br0 up\nlink delete eth0"),
        "networks[0]: 'br0 up\\nlink delete eth0' is no name of an interface",
    )
    add(
        "network-twice",
        "two networks of one namespace",
        lambda document: document["value"].update(networks=2 * document["value"]["networks"]),
        "networks[1].namespace: ",
    )
    add(
        "group-of-others",
        "a checkpoint of a group that its job is not in",
        value("group", group(members=["db"])),
        "group.members: web is none of them",
    )
    add(
        "group-climbs",
        "a member that is no name",
        value("group", group(members=["../../web", "web"])),
        "group.members[0]: '../../web' is no name",
    )
    add(
        "group-of-no-instant",
        "an instant that is a path",
        value("group", group(instant="../../jobs/web00")),
        "group.instant: '../../jobs/web00' is not 8 bytes",
    )
    add("cgroup-climbs", "a cgroup outside", cgroup("path", "/a/../.."), "cgroups[0].path: '/a/../..' is not")
    add(
        "cgroup-setting-climbs",
        "a setting that is a path",
        cgroup("settings", [{"name": "../release_agent", "value": "/bin/sh"}]),
        "settings[0].name: '../release_agent' is not the plain name",
    )
    add("job-climbs", "a job that is no name", value("job", "../web"), "job: '../web' is no name")
    add(
        "image-set-gone",
        "a tree without images",
        value("image_sets", []),
        "image_sets: 0 image sets for 1 trees",
    )


def _lying(base: Base, sets: Sets) -> None:
    """Manifests whose every field may be so, and which are signed, but which their placements do not fit."""

    def add(which: str, about: str, fields: dict[str, Any], says: str) -> None:
        def change(document: Document) -> None:
            files = document["value"]["image_sets"][0]["files"]
            next(file for file in files if file["name"] == "pages-1.img").update(fields)

        found, made = put_manifest(base, changed(base, change))
        placement = put_placement(base, base.placement(base.newest), found)
        expected = CORRUPT | {"says": says}
        sets.add(
            f"manifest-{which}",
            about,
            [made, placement, put_signature(base, found)],
            expect={"restore": expected},
            verify=[told(CORRUPT, found, says)],
            restore=found,
        )

    where = "it does not say where pages-1.img is"
    add("lying-size", "a file of 1 TiB where there are a few chunks", {"size_bytes": 1 << 40}, where)
    add("lying-short", "a file that is shorter than its chunks", {"size_bytes": 4096}, where)
    add("lying-root", "a root that no file has", {"root": bytes(32)}, where)
    found, made = put_manifest(base, changed(base, lambda document: document["value"].update(message="x")))
    missing = MISSING | {"says": f"has no placement {found}"}
    sets.add(
        "manifest-unplaced",
        "a manifest without a placement",
        [made, put_signature(base, found)],
        expect={"restore": missing, "sweep": missing},
        verify=[told(MISSING, found, "has no placement")],
        restore=found,
        cure=[found],
    )


def _nested(depth: int) -> list[Any]:
    return [_nested(depth - 1)] if depth else []
