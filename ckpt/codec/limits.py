"""The bounds of the format: whatever exceeds one is refused before memory is spent on it.

Source: images/FORMAT.md, section "Limits", which a test keeps equal to this file.
"""

from __future__ import annotations

from typing import Final

from ckpt.units import ByteCount

CHUNK_BYTES_MAX: Final = ByteCount(16 << 20)
"""Plain bytes of one chunk."""

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
