"""The far side: answers what is asked on two streams, until the asking side is gone.

Rules: an error of ckpt is an answer; a bug ends the agent, and its traceback goes to standard error. While an answer
is made, it says that it is alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

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
    Read,
    common_protocol,
    encode,
    read_message,
)
from ckpt.errors import CkptError
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs

ALIVE_EVERY_S: Final = 5.0
_ASKING: Final = "the asking side"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Who knows the answers."""

    facts: Callable[[], Facts]
    judge: Callable[[Needs], tuple[Finding, ...]]


def serve(read: Read, write: Callable[[bytes], None], own: Hello, answers: Answers) -> None:
    """Greet, and answer until the other side ends.

    Args:
        read: The stream from the asking side.
        write: The stream to it; writes all.
        own: Who answers.
        answers: What is answered.

    Raises:
        PeerFailed: the asking side says what is no message.
        NoCommonProtocol: it does not speak ours.
    """
    write(MARK + encode(own))
    theirs = read_message(read, (Hello,), _ASKING)
    if theirs is None:
        return
    common_protocol(theirs, _ASKING)
    expected: Collection[type[AskFacts | AskNeeds]] = (AskFacts, AskNeeds)
    while (question := read_message(read, expected, _ASKING)) is not None:
        with _saying_alive(write):
            answer = _answer(question, answers)
        write(answer)


def _answer(question: AskFacts | AskNeeds, answers: Answers) -> bytes:
    answer: Message
    try:
        match question:
            case AskFacts():
                answer = answers.facts()
            case AskNeeds(needs=needs):
                answer = Findings(findings=answers.judge(needs))
        return encode(answer)
    except CkptError as error:
        return encode(
            Failed(slug=error.slug, message=error.message, hint=error.advice, exit_code=error.exit_code)
        )


@contextmanager
def _saying_alive(write: Callable[[bytes], None]) -> Iterator[None]:
    over = threading.Event()

    def say() -> None:
        # When nobody listens any more, the answer will find that out.
        with suppress(OSError):
            while not over.wait(ALIVE_EVERY_S):
                write(encode(Alive()))

    thread = threading.Thread(target=say, daemon=True, name="alive")
    thread.start()
    try:
        yield
    finally:
        # Joined before the answer is written: no message stands within another.
        over.set()
        thread.join()
