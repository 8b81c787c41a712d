"""Varlink, the served side of it: bytes of a client to calls, and answers to bytes.

Rules:
- Everything a client says is hostile until it is a `VarlinkCall`: its size is bounded before it is kept, and what
  it says is bounded before it is decoded.
- A message is one JSON object and a NUL. A call that is no such object ends the connection: there is no telling
  where the next one begins.
Source: varlink.org, "Protocol"; systemd, src/libsystemd/sd-varlink/sd-varlink.c.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MESSAGE_BYTES_MAX: Final = 64 * 1024
CALLS_MAX: Final = 16
"""How many calls a client may have sent that are not answered."""

_NAME_CHARACTERS_MAX: Final = 255
_DEPTH_MAX: Final = 32


class Garbled(Exception):
    """What a client sent is no call; says what it is."""


Value = str | bool | int | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlinkCall:
    """One call of a method: the names of its parameters that are text, and their values.

    `oneway` asks for no answer, `more` for several.
    """

    method: str
    texts: tuple[tuple[str, str], ...] = ()
    oneway: bool = False
    more: bool = False

    def text(self, name: str) -> str | None:
        """The parameter of this name; None if there is none, or it is no text."""
        return dict(self.texts).get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlinkAnswer:
    """What a call gives: parameters; or with `error`, the name of an error and its parameters."""

    parameters: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""


class CallReader:
    """The calls in the bytes of one connection, in their order."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._rest = bytearray()

    def feed(self, content: bytes) -> list[VarlinkCall]:
        """The calls that end in these bytes; what has begun is kept for the next.

        Raises:
            Garbled: a message is longer than MESSAGE_BYTES_MAX, is no call, or there are more than CALLS_MAX.
        """
        self._rest += content
        *whole, rest = self._rest.split(b"\0")
        self._rest = rest
        if len(whole) > CALLS_MAX:
            raise Garbled(f"{len(whole)} calls at once, of {CALLS_MAX} at most")
        if len(rest) > MESSAGE_BYTES_MAX:
            raise Garbled(f"a message of more than {MESSAGE_BYTES_MAX} bytes")
        return [_call(bytes(message)) for message in whole]


def encode_answer(answer: VarlinkAnswer) -> bytes:
    """The bytes of an answer, the NUL included."""
    document: dict[str, object] = {"parameters": dict(answer.parameters)}
    if answer.error:
        document["error"] = answer.error
    return json.dumps(document, separators=(",", ":")).encode() + b"\0"


def _call(message: bytes) -> VarlinkCall:
    if len(message) > MESSAGE_BYTES_MAX:
        raise Garbled(f"a message of {len(message)} bytes, of {MESSAGE_BYTES_MAX} at most")
    # Braces in texts count as well: whoever calls this method has no need of them.
    if message.count(b"{") + message.count(b"[") > _DEPTH_MAX:
        raise Garbled(f"more than {_DEPTH_MAX} objects and lists in a message")
    try:
        document = json.loads(message.decode("utf-8"))
    except ValueError as error:
        raise Garbled("a message that is no JSON") from error
    if not isinstance(document, dict):
        raise Garbled("a message that is no object")
    method = document.get("method")
    if not isinstance(method, str) or not 0 < len(method) <= _NAME_CHARACTERS_MAX:
        raise Garbled("a message that names no method")
    parameters = document.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise Garbled(f"parameters of {method!r} that are no object")
    return VarlinkCall(
        method=method,
        texts=tuple((name, value) for name, value in parameters.items() if isinstance(value, str)),
        oneway=document.get("oneway") is True,
        more=document.get("more") is True,
    )
