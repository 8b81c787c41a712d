"""The far side: what it answers on its streams, and that errors are answers."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest
from fakes.needs import NO_NEEDS

from ckpt.codec.messages import (
    MARK,
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Message,
    encode,
    read_message,
)
from ckpt.codec.migration_messages import AskDirect, SwitchToDirect
from ckpt.errors import NoCommonProtocol, NotRoot, PeerFailed
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.remote import serving
from ckpt.remote.serving import Answers, serve
from ckpt.store.wire_seal import WireCipher

OWN = Hello(protocols=(1, 2), version="0.1.0", host="there")


def refuse() -> Facts:
    raise NotRoot(operation="ckpt agent", uid=1000)


def find_nothing(_needs: Needs) -> tuple[Finding, ...]:
    return ()


ANSWERS = Answers(facts=refuse, judge=find_nothing)


def answers_to(*said: bytes, answers: Answers = ANSWERS) -> list[Message | None]:
    """Everything that the far side says, after the mark."""
    output = io.BytesIO()
    serve(io.BytesIO(b"".join(said)).read, output.write, OWN, answers)
    content = output.getvalue()
    assert content.startswith(MARK)
    stream = io.BytesIO(content[len(MARK) :])
    kinds = (Hello, Alive, Facts, Findings, Failed)
    heard: list[Message | None] = []
    while (message := read_message(stream.read, kinds, "there")) is not None:
        heard.append(message)
    return heard


def test_it_greets_and_answers_until_the_other_side_ends() -> None:
    asked = encode(AskNeeds(needs=NO_NEEDS))
    assert answers_to(encode(OWN), asked, asked) == [OWN, Findings(findings=()), Findings(findings=())]
    assert answers_to() == [OWN]


def test_an_error_is_an_answer() -> None:
    _, failed = answers_to(encode(OWN), encode(AskFacts()))
    assert isinstance(failed, Failed)
    assert (failed.slug, failed.exit_code, failed.hint) == ("not-root", 10, "Run it with sudo.")


def test_who_takes_no_workload_in_offers_no_connection_and_answers_on() -> None:
    asked = AskDirect(migration="0" * 16, address="127.0.0.1")
    said = map(encode, (OWN, asked, SwitchToDirect(), AskNeeds(needs=NO_NEEDS)))
    _, none, neither, findings = answers_to(*said, answers=replace(ANSWERS, new_cipher=WireCipher))
    for failed in (none, neither):
        assert isinstance(failed, Failed)
        assert failed.message.startswith("Could not take a direct connection")
    assert findings == Findings(findings=())


def test_nonsense_and_a_strange_protocol_end_it() -> None:
    with pytest.raises(PeerFailed, match="asking side"):
        answers_to(encode(OWN), encode(Findings(findings=())))
    with pytest.raises(NoCommonProtocol):
        answers_to(encode(Hello(protocols=(9,), version="9", host="here")))


def test_it_says_that_it_is_alive_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "ALIVE_EVERY_S", 0.001)
    alive = threading.Event()

    def write(content: bytes) -> None:
        if content == encode(Alive()):
            alive.set()

    def wait(_needs: Needs) -> tuple[Finding, ...]:
        assert alive.wait(20)
        return ()

    said = encode(OWN) + encode(AskNeeds(needs=NO_NEEDS))
    serve(io.BytesIO(said).read, write, OWN, Answers(facts=refuse, judge=wait))
