"""pycriu's generated message classes, and nothing else of pycriu.

Rule: the only module that imports pycriu. The classes carry no types: what leaves this package is a value of
ours.
Source: images/*.proto of CRIU; lib/pycriu.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, Final

from google.protobuf.message import DecodeError, EncodeError, Message

if sys.version_info >= (3, 14):
    # pycriu asks for the pure-Python backend on 3.14, which is several times slower. The compiled one of
    # today's protobuf packages works there; what is set first wins.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")

with warnings.catch_warnings():
    # protobuf >= 6.33 warns about the age of the generator that Debian built pycriu with.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pycriu import rpc_pb2
    from pycriu.images import magic as _magic
    from pycriu.images import pb as _messages

__all__ = ["MAGIC", "DecodeError", "EncodeError", "Message", "image", "rpc"]

rpc: Final[Any] = rpc_pb2
"""The messages of images/rpc.proto."""

image: Final[Any] = _messages
"""The messages of image files, by the names in images/*.proto."""

MAGIC: Final[dict[str, int]] = dict(_magic.by_name)
"""The number that begins an image file, by CRIU's name of its kind."""
