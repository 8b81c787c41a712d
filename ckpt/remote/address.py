"""Where another host is, as users write it: [USER@]HOST[:PORT], or an alias of their ~/.ssh/config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckpt.errors import Usage

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})", re.ASCII)
_V6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?", re.ASCII)
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a host is; `user` and `port` are None where the user left them to ssh's own rules."""

    user: str | None
    host: str
    port: int | None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """The address that the text means; one of IPv6 stands in brackets where a port follows.

    Raises:
        Usage: it means none.
    """
    user, at, place = text.rpartition("@")
    if at and _USER.fullmatch(user) is None:
        raise _bad(text, f"{user!r} is no user's name")
    host, port = _split_port(place)
    if port is not None and not (port.isdecimal() and port.isascii() and 0 < int(port) <= 0xFFFF):
        raise _bad(text, f"{port!r} is no port")
    if (_V6 if ":" in host else _HOST).fullmatch(host) is None:
        raise _bad(text, f"{host!r} is no host")
    return Address(user=user or None, host=host, port=int(port) if port else None)


def _split_port(place: str) -> tuple[str, str | None]:
    if place.startswith("["):
        host, bracket, after = place[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise _bad(place, "a bracket is not closed, or not followed by a port")
        return host, after[1:] if after else None
    # Several colons and no brackets: an address of IPv6 without a port.
    if place.count(":") > 1:
        return place, None
    host, colon, port = place.partition(":")
    return host, port if colon else None


def _bad(text: str, reason: str) -> Usage:
    return Usage(
        problem=f"{text!r} is not the address of a host: {reason}.",
        remedy="Write [USER@]HOST[:PORT], an address of IPv6 with a port as [ADDRESS]:PORT.",
    )
