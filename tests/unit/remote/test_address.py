"""Where a host is, as users write it."""

from __future__ import annotations

import pytest

from ckpt.errors import Usage
from ckpt.remote.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("web", None, "web", None),
        ("root@web.example.org", "root", "web.example.org", None),
        ("root@10.0.0.1:2222", "root", "10.0.0.1", 2222),
        ("[2001:db8::1]:22", None, "2001:db8::1", 22),
        ("[2001:db8::1]", None, "2001:db8::1", None),
        ("a-b@2001:db8::1", "a-b", "2001:db8::1", None),
        ("fe80::1%eth0", None, "fe80::1%eth0", None),
    ],
)
def test_an_address_is_read(text: str, user: str | None, host: str, port: int | None) -> None:
    assert parse_address(text) == Address(user=user, host=host, port=port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@web",
        "web:",
        "web:0",
        "web:65536",
        "web:x",
        "[::1",
        "[::1]x",
        "-oProxyCommand=x",
        "a b",
        "x@-host",
        "we;b",
        "r$@h",
    ],
)
def test_what_is_no_address_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(Usage) as caught:
        parse_address(text)
    assert "[USER@]HOST[:PORT]" in caught.value.advice


def test_it_is_told_as_it_would_be_written() -> None:
    assert str(parse_address("root@[::1]:2222")) == "root@[::1]:2222"
    assert str(parse_address("[::1]")) == "::1"
