"""The JSON that scripts rely on: its keys are promises."""

from __future__ import annotations

import json

from fakes.checkpoints import a_checkpoint
from fakes.values import an_image_file

from ckpt.cli.documents import (
    dump_document,
    list_document,
    removal_document,
    restore_document,
    rfc3339,
    show_document,
    verify_document,
)
from ckpt.cli.portrait import portrait
from ckpt.model.inodes import Difference, FileChange, Identity, InodeMethod, InodeOutcome
from ckpt.model.reports import (
    DumpReport,
    Problem,
    RestoreReport,
    StoredCheckpoint,
    SweepReport,
    VerifyReport,
)
from ckpt.units import (
    ByteCount,
    CheckpointId,
    DeviceNumber,
    InodeNumber,
    JobName,
    Nanoseconds,
    Pid,
    Tag,
)

ID = CheckpointId("ab" * 32)
CHECKPOINT = a_checkpoint(an_image_file("pages-1.img", 4096), an_image_file("core-1.img", 100))
STORED = StoredCheckpoint(id=ID, checkpoint=CHECKPOINT, tags=(Tag("gold"),), stored_bytes=ByteCount(99))
DUMPED = DumpReport(
    id=ID,
    checkpoint=CHECKPOINT,
    total_ns=Nanoseconds(12_345_678),
    new_bytes=ByteCount(7),
    stored_bytes=ByteCount(5),
    stopped=False,
    warnings=("careful",),
)


def test_a_dump() -> None:
    document = dump_document(DUMPED)
    json.dumps(document)
    assert document.keys() >= {
        "id", "job", "frozen_ms", "dump_ms", "total_ms", "image_bytes", "new_bytes", "stored_bytes", "trees",
        "parent",
    }  # fmt: skip
    assert document["total_ms"] == 12.346
    assert document["image_bytes"] == CHECKPOINT.image_bytes
    tree, process = document["trees"][0], CHECKPOINT.workload.trees[0]
    assert tree == {
        "pid": process.root,
        "tasks": len(process.processes),
        "threads": sum(len(each.threads) for each in process.processes),
    }


def test_a_restore() -> None:
    report = RestoreReport(
        id=ID,
        job=JobName("web"),
        pid=Pid(7),
        pids=(Pid(7), Pid(9)),
        cgroup="/cg",
        restore_ns=Nanoseconds(2_500_000),
        resumed_ns=Nanoseconds(2_750_000),
        lazy=True,
        total_ns=Nanoseconds(3_000_000),
        file_changes=(FileChange(path="/f", difference=Difference.INODE, recorded="1", found="2"),),
        inodes=(
            InodeOutcome(
                path="/f",
                recorded=Identity(device=DeviceNumber(9), inode=InodeNumber(1)),
                found=Identity(device=DeviceNumber(8), inode=InodeNumber(2)),
                seen=Identity(device=DeviceNumber(9), inode=InodeNumber(1)),
                method=InodeMethod.VIRTUAL,
            ),
        ),
        warnings=(),
    )
    assert restore_document(report) == {
        "id": ID,
        "job": "web",
        "pid": 7,
        "pids": [7, 9],
        "cgroup": "/cg",
        "restore_ms": 2.5,
        "lazy": True,
        "resumed_ms": 2.75,
        "total_ms": 3.0,
        "file_changes": [{"path": "/f", "difference": "inode", "recorded": "1", "found": "2"}],
        "inodes": [
            {
                "path": "/f",
                "recorded": {"device": 9, "inode": 1},
                "found": {"device": 8, "inode": 2},
                "seen": {"device": 9, "inode": 1},
                "method": "virtual",
            }
        ],
        "warnings": [],
    }


def test_a_list() -> None:
    [document] = list_document([STORED])["checkpoints"]
    assert document.keys() >= {
        "id", "job", "created", "frozen_ms", "image_bytes", "stored_bytes", "tags", "parent",
    }  # fmt: skip
    assert document["tags"] == ["gold"]
    assert document["created"].endswith("Z")


def test_a_checkpoint_shown() -> None:
    document = show_document(STORED)
    json.dumps(document)
    assert document.keys() >= {"id", "job", "created", "host", "clocks", "trees", "inodes", "image_sets"}
    assert document["clocks"].keys() >= {"realtime_ns", "monotonic_ns", "boottime_ns"}
    assert document["inodes"][0].keys() >= {
        "path", "device", "inode", "generation", "size_bytes", "mtime_ns", "digest", "roles",
    }  # fmt: skip
    assert document["trees"][0]["processes"][0]["pid"] == CHECKPOINT.workload.trees[0].root
    assert document["image_sets"][0]["image_bytes"] == CHECKPOINT.image_bytes


def test_a_verification() -> None:
    report = VerifyReport(
        checked_chunks=3,
        checked_bytes=ByteCount(10),
        problems=(Problem(slug="corrupt", subject="chunk x", message="damaged"),),
    )
    assert verify_document(report) == {
        "ok": False,
        "checked_chunks": 3,
        "checked_bytes": 10,
        "problems": [{"slug": "corrupt", "subject": "chunk x", "message": "damaged"}],
    }


def test_a_removal() -> None:
    report = SweepReport(removed_objects=4, freed_bytes=ByteCount(99))
    assert removal_document([ID], report) == {"removed": [ID], "removed_objects": 4, "freed_bytes": 99}


def test_instants_are_rfc_3339_in_utc() -> None:
    assert rfc3339(Nanoseconds(1_800_000_000_123_456_789)) == "2027-01-15T08:00:00.123456Z"


def test_the_portrait_has_a_section_for_each_subject_and_none_that_is_empty() -> None:
    shown = portrait(STORED)
    for title in ("Processes", "Clocks at the freeze", "Timers", "Files", "Image sets"):
        assert f"\n\n{title}\n  " in shown
    assert ID in shown
    assert "gold" in shown
