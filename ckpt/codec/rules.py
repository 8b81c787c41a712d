"""What a value must satisfy beyond the types of its fields, so that nothing hostile travels inside.

Rules: F20 to F29, F79, F98, F101, F102, F106, F107 and F109 to F112 of images/FORMAT.md.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from ckpt.codec import names
from ckpt.codec.limits import (
    CHUNK_BYTES_MAX,
    COMPONENT_BYTES_MAX,
    KDF_COST_LOG2_MAX,
    KDF_COST_LOG2_MIN,
    TAG_SERIAL_MAX,
)
from ckpt.codec.packed import Refused
from ckpt.codec.records import Encryption, Signature, StoreConfigV1, TagMark
from ckpt.codec.v1 import Chunk, ChunkedCarriedFile, ChunkedCheckpoint, ChunkedFile, ChunkedImageSet
from ckpt.codec.v2 import CheckpointV2
from ckpt.model.checkpoint import (
    CarriedFile,
    Checkpoint,
    ExtendedAttribute,
    GroupInstant,
    ImageSet,
    SavedFile,
    StoredFile,
    Volume,
    is_own_attribute,
)
from ckpt.model.group import MEMBERS_MAX
from ckpt.model.inodes import Identity
from ckpt.model.network import Network, refuse_network
from ckpt.model.settings import (
    COREDUMP_FILTER_MAX,
    CPU_NUMBER_MAX,
    IO_PRIORITY_MAX,
    NICE_MAX,
    NICE_MIN,
    TIMER_SLACK_NS_MAX,
    ProcessSettings,
    ThreadSettings,
)
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.units import PAGE_BYTES

_MODE_BITS: Final = 0o7777
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_XATTR_BYTES_MAX: Final = 1 << 16
"""Linux's own bound of one extended attribute (XATTR_SIZE_MAX of <linux/limits.h>)."""


def _refuse(path: str, reason: str) -> None:
    if reason:
        raise Refused(reason).inside(path)


def _check_chunk(chunk: Chunk) -> None:
    if not 0 < chunk.size_bytes <= CHUNK_BYTES_MAX:
        _refuse("size_bytes", f"a chunk of {chunk.size_bytes} bytes, not of 1 to {CHUNK_BYTES_MAX}")


def _check_stored_file(file: StoredFile | ChunkedFile) -> None:
    _refuse("name", names.refuse_component(file.name))
    if not 0 <= file.mode <= _MODE_BITS:
        _refuse("mode", f"{file.mode:#o} has other bits than permissions")


def _check_chunked_file(file: ChunkedFile) -> None:
    _check_stored_file(file)
    total = sum(chunk.size_bytes for chunk in file.chunks)
    if total != file.size_bytes:
        _refuse("size_bytes", f"{file.size_bytes} bytes, but its chunks have {total} together")


def _check_image_set(images: ImageSet | ChunkedImageSet) -> None:
    seen: set[str] = set()
    for index, name in enumerate([file.name for file in images.files]):
        if name in seen:
            _refuse(f"files[{index}].name", f"a second file of the name {name!r}")
        seen.add(name)


def _check_carried_file(carried: CarriedFile | ChunkedCarriedFile) -> None:
    _refuse("path", names.refuse_absolute_path(carried.path))


def _check_saved_file(saved: SavedFile) -> None:
    _refuse("path", names.refuse_absolute_path(saved.path))
    if not stat.S_ISREG(saved.mode):
        _refuse("mode", f"{saved.mode:#o} is not that of a regular file")
    found = [attribute.name for attribute in saved.attributes]
    if found != sorted(set(found)):
        _refuse("attributes", "their names do not rise")


def _check_extended_attribute(attribute: ExtendedAttribute) -> None:
    if len(attribute.name.encode(errors="surrogateescape")) > COMPONENT_BYTES_MAX:
        _refuse("name", f"an attribute's name of more than {COMPONENT_BYTES_MAX} bytes")
    if not is_own_attribute(attribute.name):
        _refuse("name", f"{attribute.name!r} is none of a file's own attributes")
    if len(attribute.value) > 2 * _XATTR_BYTES_MAX or not _HEX.fullmatch(attribute.value):
        _refuse("value", f"not at most {_XATTR_BYTES_MAX} bytes in hexadecimal")


def _check_volume(volume: Volume) -> None:
    _refuse("mountpoint", names.refuse_absolute_path(volume.mountpoint))
    _refuse("filesystem", names.refuse_component(volume.filesystem))


def _check_network(network: Network) -> None:
    _refuse("", refuse_network(network))


def _check_group(group: GroupInstant) -> None:
    _refuse_no_hex("instant", group.instant, 8)
    if not 0 < len(group.members) <= MEMBERS_MAX:
        _refuse("members", f"{len(group.members)} of them, not 1 to {MEMBERS_MAX}")
    if list(group.members) != sorted(set(group.members)):
        _refuse("members", "their names do not rise")


def _check_identity(identity: Identity) -> None:
    if identity.inode == 0:
        _refuse("inode", "0, which no file has")


def _check_cgroup(cgroup: CgroupRecord) -> None:
    _refuse("path", names.refuse_absolute_path(cgroup.path))


def _check_cgroup_setting(setting: CgroupSetting) -> None:
    _refuse("name", names.refuse_component(setting.name))


def _refuse_outside(path: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        _refuse(path, f"{value} is not between {least} and {most}")


def _check_thread_settings(settings: ThreadSettings) -> None:
    _refuse_outside("io_priority", settings.io_priority, 0, IO_PRIORITY_MAX)
    _refuse_outside("timer_slack_ns", settings.timer_slack_ns, 0, TIMER_SLACK_NS_MAX)
    least = 0
    for index, cpus in enumerate(settings.cpus):
        _refuse_outside(f"cpus[{index}].first", cpus.first, least, CPU_NUMBER_MAX)
        _refuse_outside(f"cpus[{index}].last", cpus.last, cpus.first, CPU_NUMBER_MAX)
        least = cpus.last + 1


def _check_process_settings(settings: ProcessSettings) -> None:
    _refuse_outside("coredump_filter", settings.coredump_filter, 0, COREDUMP_FILTER_MAX)
    _refuse_outside("autogroup_nice", settings.autogroup_nice, NICE_MIN, NICE_MAX)


def _refuse_twice(settings: tuple[ProcessSettings, ...]) -> None:
    seen: set[int] = set()
    for index, process in enumerate(settings):
        if process.pid in seen:
            _refuse(f"settings[{index}].pid", f"{process.pid} a second time")
        seen.add(process.pid)


def _refuse_one_namespace_twice(networks: tuple[Network, ...]) -> None:
    seen: set[int] = set()
    for index, network in enumerate(networks):
        if network.namespace in seen:
            _refuse(f"networks[{index}].namespace", f"{network.namespace} a second time")
        seen.add(network.namespace)


def _check_checkpoint(checkpoint: Checkpoint | CheckpointV2 | ChunkedCheckpoint) -> None:
    images, trees = len(checkpoint.image_sets), len(checkpoint.workload.trees)
    if images != trees:
        _refuse("image_sets", f"{images} image sets for {trees} trees")
    if isinstance(checkpoint, Checkpoint):
        for index, directory in enumerate(checkpoint.saved_directories):
            _refuse(f"saved_directories[{index}]", names.refuse_absolute_path(directory))
        _refuse_twice(checkpoint.settings)
        _refuse_one_namespace_twice(checkpoint.networks)
        if checkpoint.group is not None and checkpoint.job not in checkpoint.group.members:
            _refuse("group.members", f"{checkpoint.job or 'a checkpoint of no job'} is none of them")


def _check_store_config_v1(config: StoreConfigV1) -> None:
    size = config.chunk_bytes
    if size % PAGE_BYTES or not PAGE_BYTES <= size <= CHUNK_BYTES_MAX:
        _refuse("chunk_bytes", f"{size} is not a multiple of {PAGE_BYTES} up to {CHUNK_BYTES_MAX}")


def _check_tag_mark(mark: TagMark) -> None:
    if not 0 < mark.serial <= TAG_SERIAL_MAX:
        _refuse("serial", f"{mark.serial} is not between 1 and {TAG_SERIAL_MAX}")


def _refuse_no_hex(path: str, text: str, size: int) -> None:
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        _refuse(path, f"{text[:80]!r} is not {size} bytes in lower-case hexadecimal")


def _check_signature(signature: Signature) -> None:
    _refuse_no_hex("public_key", signature.public_key, 32)
    _refuse_no_hex("signature", signature.signature, 64)


def _check_encryption(encryption: Encryption) -> None:
    _refuse_no_hex("kdf_salt", encryption.kdf_salt, 32)
    _refuse_no_hex("wrapped_key", encryption.wrapped_key, 48)
    if not KDF_COST_LOG2_MIN <= encryption.kdf_cost_log2 <= KDF_COST_LOG2_MAX:
        _refuse(
            "kdf_cost_log2",
            f"{encryption.kdf_cost_log2} is not between {KDF_COST_LOG2_MIN} and {KDF_COST_LOG2_MAX}",
        )


RULES: Final[Mapping[type[Any], Callable[[Any], None]]] = {
    Chunk: _check_chunk,
    ChunkedFile: _check_chunked_file,
    ChunkedImageSet: _check_image_set,
    ChunkedCarriedFile: _check_carried_file,
    ChunkedCheckpoint: _check_checkpoint,
    StoredFile: _check_stored_file,
    ImageSet: _check_image_set,
    CarriedFile: _check_carried_file,
    CgroupRecord: _check_cgroup,
    CgroupSetting: _check_cgroup_setting,
    SavedFile: _check_saved_file,
    ExtendedAttribute: _check_extended_attribute,
    Volume: _check_volume,
    Network: _check_network,
    GroupInstant: _check_group,
    Identity: _check_identity,
    ThreadSettings: _check_thread_settings,
    ProcessSettings: _check_process_settings,
    CheckpointV2: _check_checkpoint,
    Checkpoint: _check_checkpoint,
    StoreConfigV1: _check_store_config_v1,
    Encryption: _check_encryption,
    Signature: _check_signature,
    TagMark: _check_tag_mark,
}
