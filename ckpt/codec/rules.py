"""What a value must satisfy beyond the types of its fields, so that nothing hostile travels inside.

Rules: F20 to F29 of images/FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ckpt.codec import names
from ckpt.codec.limits import CHUNK_BYTES_MAX, TAG_SERIAL_MAX
from ckpt.codec.packed import Refused
from ckpt.codec.records import StoreConfig, TagMark
from ckpt.model.checkpoint import CarriedFile, Checkpoint, Chunk, ImageSet, StoredFile
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.units import PAGE_BYTES

_MODE_BITS: Final = 0o7777


def _refuse(path: str, reason: str) -> None:
    if reason:
        raise Refused(reason).inside(path)


def _check_chunk(chunk: Chunk) -> None:
    if not 0 < chunk.size_bytes <= CHUNK_BYTES_MAX:
        _refuse("size_bytes", f"a chunk of {chunk.size_bytes} bytes, not of 1 to {CHUNK_BYTES_MAX}")


def _check_stored_file(file: StoredFile) -> None:
    _refuse("name", names.refuse_component(file.name))
    if not 0 <= file.mode <= _MODE_BITS:
        _refuse("mode", f"{file.mode:#o} has other bits than permissions")
    total = sum(chunk.size_bytes for chunk in file.chunks)
    if total != file.size_bytes:
        _refuse("size_bytes", f"{file.size_bytes} bytes, but its chunks have {total} together")


def _check_image_set(images: ImageSet) -> None:
    seen: set[str] = set()
    for index, file in enumerate(images.files):
        if file.name in seen:
            _refuse(f"files[{index}].name", f"a second file of the name {file.name!r}")
        seen.add(file.name)


def _check_carried_file(carried: CarriedFile) -> None:
    _refuse("path", names.refuse_absolute_path(carried.path))


def _check_cgroup(cgroup: CgroupRecord) -> None:
    _refuse("path", names.refuse_absolute_path(cgroup.path))


def _check_cgroup_setting(setting: CgroupSetting) -> None:
    _refuse("name", names.refuse_component(setting.name))


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    images, trees = len(checkpoint.image_sets), len(checkpoint.workload.trees)
    if images != trees:
        _refuse("image_sets", f"{images} image sets for {trees} trees")


def _check_store_config(config: StoreConfig) -> None:
    size = config.chunk_bytes
    if size % PAGE_BYTES or not PAGE_BYTES <= size <= CHUNK_BYTES_MAX:
        _refuse("chunk_bytes", f"{size} is not a multiple of {PAGE_BYTES} up to {CHUNK_BYTES_MAX}")


def _check_tag_mark(mark: TagMark) -> None:
    if not 0 < mark.serial <= TAG_SERIAL_MAX:
        _refuse("serial", f"{mark.serial} is not between 1 and {TAG_SERIAL_MAX}")


RULES: Final[Mapping[type[Any], Callable[[Any], None]]] = {
    Chunk: _check_chunk,
    StoredFile: _check_stored_file,
    ImageSet: _check_image_set,
    CarriedFile: _check_carried_file,
    CgroupRecord: _check_cgroup,
    CgroupSetting: _check_cgroup_setting,
    Checkpoint: _check_checkpoint,
    StoreConfig: _check_store_config,
    TagMark: _check_tag_mark,
}
