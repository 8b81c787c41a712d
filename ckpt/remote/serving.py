"""The far side: answers what is asked on two streams, until the asking side is gone.

Rules: an error of ckpt is an answer; a bug ends the agent, and its traceback goes to standard error. A signal ends it,
too, so that what it works on is free. It says that it is alive whenever it says nothing else, and from protocol 2 on the
asking side must do so too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from ckpt.codec.messages import (
    MARK,
    MIGRATION_PROTOCOL,
    Alive,
    AskFacts,
    AskNeeds,
    Facts,
    Failed,
    Findings,
    Hello,
    Read,
    common_protocol,
    encode,
)
from ckpt.codec.migration_messages import AskDirect, Direct, Switched, SwitchToDirect
from ckpt.errors import CkptError, Interrupted
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.remote.compression import Compressor
from ckpt.remote.direct import Switching
from ckpt.remote.inflow import SILENCE_S, Inflow
from ckpt.remote.receiving import RECEIVED, Content, Question, Receiving, failed
from ckpt.remote.reception import Reception
from ckpt.remote.records import NewCipher
from ckpt.remote.stream import ALIVE_EVERY_S, BulkWriter

ASKING: Final = "the asking side"
"""What errors call it."""

_ASKED: Final[Collection[type[AskFacts | AskNeeds]]] = (AskFacts, AskNeeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Who knows the answers; without a reception no workload is taken in, without ciphers all goes over SSH.

    `ssh_connection` is $SSH_CONNECTION.
    """

    facts: Callable[[], Facts]
    judge: Callable[[Needs], tuple[Finding, ...]]
    receive: Reception | None = None
    compressor: Compressor | None = None
    new_cipher: NewCipher | None = None
    ssh_connection: str = ""


def serve(
    read: Read | Inflow, write: Callable[[bytes | memoryview], None], own: Hello, answers: Answers
) -> None:
    """Greet, and answer until the other side ends.

    Args:
        read: The stream from the asking side.
        write: The stream to it; writes all. It is called by another thread, once it was greeted.
        own: Who answers.
        answers: What is answered.

    Raises:
        PeerFailed: the asking side says what is no message, or nothing at all for SILENCE_S; or it is gone.
        NoCommonProtocol: it does not speak ours.
    """
    inflow = read if isinstance(read, Inflow) else Inflow(read, ASKING)
    write(MARK + encode(own))
    theirs = inflow.message((Hello,))
    if theirs is None:
        return
    can_migrate = common_protocol(theirs, ASKING) >= MIGRATION_PROTOCOL
    inflow.silence_s = SILENCE_S if can_migrate else None
    with closing(BulkWriter(write, ASKING, ALIVE_EVERY_S)) as writer:
        if can_migrate:
            _converse(inflow, writer, answers)
        else:
            while (question := inflow.message(_ASKED)) is not None:
                writer.send(_answer(question, answers))
        writer.flush()


def _converse(inflow: Inflow, writer: BulkWriter, answers: Answers) -> None:
    """Answer as protocol 2 has it."""
    receiving = answers.receive and Receiving(answers.receive, answers.compressor, inflow, writer)
    expected: Collection[
        type[Alive | AskFacts | AskNeeds | AskDirect | SwitchToDirect | Content | Question]
    ] = (
        Alive,
        *_ASKED,
        AskDirect,
        SwitchToDirect,
        *(RECEIVED if receiving else ()),
    )
    new_cipher = answers.new_cipher if receiving else None
    with closing(Switching(inflow, new_cipher, answers.ssh_connection)) as switching:
        while (said := inflow.message(expected)) is not None:
            if isinstance(said, Alive):
                switching.expire()
                continue
            if isinstance(said, AskDirect | SwitchToDirect):
                writer.send(_switch(said, switching))
                continue
            switching.drop_port()
            if isinstance(said, AskFacts | AskNeeds):
                writer.send(_answer(said, answers))
            elif receiving:
                receiving.take(said)


def _switch(said: AskDirect | SwitchToDirect, switching: Switching) -> Direct | Switched | Failed:
    try:
        return switching.take(said)
    except Interrupted:
        raise
    except CkptError as error:
        return failed(error)


def _answer(question: AskFacts | AskNeeds, answers: Answers) -> Facts | Findings | Failed:
    try:
        match question:
            case AskFacts():
                return answers.facts()
            case AskNeeds(needs=needs):
                return Findings(findings=answers.judge(needs))
    except Interrupted:
        raise
    except CkptError as error:
        return failed(error)
