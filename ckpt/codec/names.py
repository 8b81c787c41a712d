"""Names from outside: what they may look like.

Rules: F14, F20 and F22 of images/FORMAT.md. Each function answers a reason to refuse, or "".
"""

from __future__ import annotations

import re
from typing import Final

from ckpt.codec.limits import COMPONENT_BYTES_MAX, PATH_BYTES_MAX

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def refuse_label(text: str) -> str:
    """Why the text cannot be the name of a job or a tag; "" if it can."""
    if _LABEL.fullmatch(text):
        return ""
    return (
        f"{text[:80]!r} is no name of at most 64 letters, digits, '.', '_' and '-', "
        "beginning with a letter or digit"
    )


def refuse_digest(text: str) -> str:
    """Why the text cannot be a digest; "" if it can."""
    return "" if _DIGEST.fullmatch(text) else f"{text[:80]!r} is no SHA-256 in lower-case hexadecimal"


def refuse_component(name: str) -> str:
    """Why the text cannot be the name of a file in a directory; "" if it can."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        return f"{name[:80]!r} is not the plain name of a file"
    if len(name.encode(errors="surrogateescape")) > COMPONENT_BYTES_MAX:
        return f"a file name of more than {COMPONENT_BYTES_MAX} bytes"
    return ""


def refuse_absolute_path(path: str) -> str:
    """Why the text cannot be the path of a file to put back; "" if it can."""
    if len(path.encode(errors="surrogateescape")) > PATH_BYTES_MAX:
        return f"a path of more than {PATH_BYTES_MAX} bytes"
    if not path.startswith("/") or any(map(refuse_component, path[1:].split("/"))):
        return f"{path[:80]!r} is not an absolute path without '.', '..' and empty components"
    return ""
