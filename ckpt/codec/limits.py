"""The bounds of the format: whatever exceeds one is refused before memory is spent on it.

Source: images/FORMAT.md, section "Limits", which a test keeps equal to this file.
"""

from __future__ import annotations

from typing import Final

from ckpt.units import ByteCount

CHUNK_BYTES_MAX: Final = ByteCount(16 << 20)
"""Plain bytes of one chunk of version 1; those of version 2 have CHUNK_BYTES."""

BLOB_CHUNKS_MAX: Final = 256
"""Chunks that are compressed together: 1 MiB."""

PACK_BLOBS_MAX: Final = 64
"""Blobs of one pack."""

PACK_BYTES_MAX: Final = ByteCount(80 << 20)
"""Bytes behind a pack's header: 64 blobs that do not compress, and what lists them."""

PLACEMENT_BYTES_MAX: Final = ByteCount(128 << 20)
"""Plain bytes of a placement: enough for 8 million runs, that is, 32 GiB of which no two pages lie together."""

INDEX_BYTES_MAX: Final = ByteCount(128 << 20)
"""Plain bytes of one index: the hooks of about 2.5 TiB."""

ADDRESS_RUNS_MAX: Final = 1 << 20
"""Address runs of one space: a writer leaves out the addresses of a file that has more."""

LAYERS_MAX: Final = 64
"""Layers of a file; a writer makes at most DELTAS_MAX + 1."""

DELTAS_MAX: Final = 1
"""How many deltas a writer puts on top of a whole chunk: what is read for one stays two pieces."""

DOCUMENT_BYTES_MAX: Final = ByteCount(64 << 20)
"""Plain bytes of one msgpack document: 64 MiB describe a workload of about 1 TiB."""

BODY_SLACK_BYTES: Final = ByteCount(64 << 10)
"""How much longer than the plain bytes a stored body may be: compression never adds more than this."""

ITEMS_MAX: Final = 4_000_000
"""Items of one list."""

TEXT_BYTES_MAX: Final = 1 << 20
"""Bytes of one text: the kernel's own bound of one argument is 128 KiB (MAX_ARG_STRLEN)."""

PATH_BYTES_MAX: Final = 4096
"""Bytes of a path that is written to (PATH_MAX of <linux/limits.h>)."""

COMPONENT_BYTES_MAX: Final = 255
"""Bytes of one component of a path (NAME_MAX of <linux/limits.h>)."""

TAG_SERIAL_MAX: Final = 99_999_999
"""The highest serial of a tag mark: eight digits."""

PLACEMENT_SERIAL_MAX: Final = 99_999_999
"""The highest serial of a placement: eight digits."""

KDF_COST_LOG2_MIN: Final = 10
KDF_COST_LOG2_MAX: Final = 20
"""Bounds of scrypt's cost: 20 takes 1 GiB of memory."""
