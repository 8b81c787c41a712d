"""Bytes of a varlink client: what is a call, and what ends the connection."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.host.guard.varlink import (
    CALLS_MAX,
    MESSAGE_BYTES_MAX,
    CallReader,
    Garbled,
    VarlinkAnswer,
    VarlinkCall,
    encode_answer,
)

# What systemd's sd_varlink_invoke() writes.
NOTIFY = b'{"method":"io.systemd.oom.Prekill.Notify","parameters":{"cgroup":"/ckpt/web"}}\0'


def test_a_call_is_read_whole_however_its_bytes_come() -> None:
    reader = CallReader()
    calls = [call for byte in NOTIFY for call in reader.feed(bytes([byte]))]
    assert calls == [
        VarlinkCall(method="io.systemd.oom.Prekill.Notify", texts=(("cgroup", "/ckpt/web"),)),
    ]
    assert len(reader.feed(NOTIFY + NOTIFY + NOTIFY[:5])) == 2


def test_parameters_that_are_no_text_are_not_there_and_unknown_ones_do_no_harm() -> None:
    (call,) = CallReader().feed(
        b'{"method":"a.B","parameters":{"cgroup":["/x"],"more":1},"more":true,"new":{}}\0'
    )
    assert call == VarlinkCall(method="a.B", more=True)
    assert call.text("cgroup") is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"null",
        b"[]",
        b'{"method":1}',
        b'{"method":""}',
        b'{"parameters":{}}',
        b'{"method":"a.B","parameters":[]}',
        b'{"method":"a.B"',
        b'{"method":"\xff"}',
        b'{"method":"' + b"a" * 300 + b'"}',
        b"[" * 30_000,
        b'{"method":"a.B","parameters":{"n":' + b"9" * 60_000 + b"}}",
    ],
    ids=range(12),
)
def test_what_is_no_call_ends_the_connection(message: bytes) -> None:
    with pytest.raises(Garbled):
        CallReader().feed(message + b"\0")


def test_a_message_without_an_end_is_not_kept_for_ever_nor_are_calls_without_number() -> None:
    reader = CallReader()
    assert reader.feed(b" " * MESSAGE_BYTES_MAX) == []
    with pytest.raises(Garbled):
        reader.feed(b" ")
    with pytest.raises(Garbled):
        CallReader().feed(NOTIFY * (CALLS_MAX + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_calls_or_garbled(content: bytes) -> None:
    try:
        CallReader().feed(content + b"\0")
    except Garbled:
        return


def test_an_answer_is_one_message() -> None:
    content = encode_answer(VarlinkAnswer(error="a.B", parameters={"name": "a\0b\ud800"}))
    assert content.endswith(b"\0")
    assert content.count(b"\0") == 1
    assert json.loads(content[:-1]) == {"error": "a.B", "parameters": {"name": "a\0b\ud800"}}
    assert encode_answer(VarlinkAnswer()) == b'{"parameters":{}}\0'
