"""What a checkpoint needs is what its manifest and its images say, and nothing that it brings along."""

from __future__ import annotations

from dataclasses import replace

from fakes.checkpoints import INODE, WORKLOAD, a_checkpoint
from fakes.values import an_image_file

from ckpt.model.inodes import FileKind
from ckpt.model.needs import ImageNeeds, KernelFeature, NeededHugePages, needed_files, needs_of
from ckpt.model.workload import ExternalMount
from ckpt.units import ByteCount, CheckpointId, JobName

ID = CheckpointId("ab" * 32)
HUGE = NeededHugePages(page_bytes=ByteCount(1 << 21), count=2)
IMAGES = ImageNeeds(ports=(), names=(), features=(KernelFeature.RSEQ,), huge_pages=(HUGE,), descriptor_max=7)


def test_memory_is_that_of_the_pages_and_staging_takes_all() -> None:
    checkpoint = a_checkpoint(
        an_image_file("pages-1.img", 8192),
        an_image_file("core-1.img", 100),
        saved=an_image_file("saved", 30),
        carried=an_image_file("carried", 5),
    )
    needs = needs_of(ID, checkpoint, [IMAGES, IMAGES])
    assert (needs.memory_bytes, needs.staging_bytes, needs.store_bytes) == (8192, 8327, 0)
    assert needs.huge_pages == (NeededHugePages(page_bytes=ByteCount(1 << 21), count=4),)
    assert needs.descriptor_max == 7
    assert KernelFeature.RSEQ in needs.features


def test_a_tree_with_its_own_pids_needs_none_of_the_hosts() -> None:
    needs = needs_of(ID, a_checkpoint(), [IMAGES])
    assert needs.pids == ()
    assert KernelFeature.PID_NAMESPACE in needs.features
    shared = replace(WORKLOAD, trees=(replace(WORKLOAD.trees[0], namespaces=()),))
    checkpoint = replace(a_checkpoint(), workload=shared)
    assert [each.pid for each in needs_of(ID, checkpoint, []).pids] == [4242, 4243]
    assert needs_of(ID, checkpoint, [], new_pids=True).pids == ()


def test_it_is_filed_under_its_own_name_or_the_one_that_is_given() -> None:
    assert needs_of(ID, a_checkpoint(job=None), []).job == ID[:12]
    assert needs_of(ID, a_checkpoint(job="web"), [], job=JobName("other")).job == "other"


def test_the_mount_of_a_volume_is_not_asked_for_as_one_of_the_hosts() -> None:
    checkpoint = a_checkpoint(volume=an_image_file("0.img", 1))
    [volume] = checkpoint.volumes
    mounts = tuple(
        ExternalMount(key=place, mountpoint=place, filesystem="ext4", source="/dev/loop7", root="/")
        for place in (volume.mountpoint, "/mnt")
    )
    checkpoint = replace(checkpoint, workload=replace(checkpoint.workload, external_mounts=mounts))
    assert [each.mountpoint for each in needs_of(ID, checkpoint, []).mounts] == ["/mnt"]


def test_what_is_brought_along_need_not_be_there() -> None:
    records = (
        INODE,
        replace(INODE, path="/dev/shm/ring"),
        replace(INODE, path="/srv/volume/file"),
        replace(INODE, path="/srv/volumes"),
        replace(INODE, path="/gone", deleted=True),
        replace(INODE, path="pipe:[1]", kind=FileKind.FIFO),
        replace(INODE, path="/run/x", kind=FileKind.SOCKET),
    )
    found = needed_files(records, {"/dev/shm/ring"}, ("/srv/volume",))
    assert [each.path for each in found] == [INODE.path, "/srv/volumes"]
