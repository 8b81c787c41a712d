"""Checkpoint, store and restore live Linux workloads.

Rule: VERSION is that of pyproject.toml. To ask importlib.metadata for it would take longer than all else that
`ckpt --version` does.
"""

from typing import Final

VERSION: Final = "0.1.0"
