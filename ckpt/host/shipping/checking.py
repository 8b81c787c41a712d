"""What a source says of files is checked before anything is done by it."""

from __future__ import annotations

from ckpt.codec.names import refuse_absolute_path
from ckpt.errors import PeerFailed
from ckpt.host.shipping.blocks import BLOCK_BYTES, FILE_BYTES_MAX, PIECE_BYTES
from ckpt.model.checkpoint import SavedFile
from ckpt.model.shipping import SHIPPED_MAX, number_in


def check_content(number: int, path: str) -> None:
    """Nothing, if there may be a content of this number with this path.

    Raises:
        PeerFailed: if not.
    """
    if not 0 <= number < SHIPPED_MAX:
        raise nonsense(f"content {number}, and there are at most {SHIPPED_MAX}")
    if reason := refuse_absolute_path(path):
        raise nonsense(reason)


def check_blocks(path: str, size: int, first_block: int, length: int) -> None:
    """Nothing, if a file of `size` bytes may have `length` bytes from this block on: whole blocks, or up to its end.

    Raises:
        PeerFailed: if not.
    """
    if not 0 <= size <= FILE_BYTES_MAX:
        raise nonsense(f"{path} of {size} bytes, and at most {FILE_BYTES_MAX} are sent")
    end = first_block * BLOCK_BYTES + length
    is_whole = length % BLOCK_BYTES == 0 or end == size
    if first_block < 0 or length > PIECE_BYTES or end > size or not is_whole:
        raise nonsense(f"{length} bytes of {path} from block {first_block} on, which has {size} bytes")


def number_of(file: SavedFile) -> int:
    """The number under which the file's content was sent.

    Raises:
        PeerFailed: its name is none that a source gives.
    """
    number = number_in(file.content.name)
    if number is None:
        raise nonsense(f"{file.content.name!r} for a content of {file.path}")
    return number


def nonsense(what: str) -> PeerFailed:
    """The error for what no source sends."""
    return PeerFailed(host="the source", reason=f"it sent nonsense: {what}")
