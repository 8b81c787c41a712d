"""Count what goes to another host, for the bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from ckpt.cli.progress import Teller
    from ckpt.remote.far_side import FarSide

_COUNTED: Final = ("pages", "image_file", "file_blocks")
"""The methods whose last argument is what is sent."""


def counting(far: FarSide, tell: Teller) -> FarSide:
    """The far side, telling of the plain bytes of all that is sent there."""
    return cast("FarSide", _Counting(far, tell))


class _Counting:
    """Passes everything on to the far side behind it."""

    def __init__(self, far: FarSide, tell: Teller) -> None:
        self._far = far
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._far, name)
        if name not in _COUNTED:
            return attribute

        def send(*arguments: Any) -> None:
            attribute(*arguments)
            self._tell.moved(len(arguments[-1]))

        return send
