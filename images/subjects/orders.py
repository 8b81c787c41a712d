"""Orders to a program through two files, and its answers: no connection is open when it is dumped.

Rule: a request and an answer are each there as a whole or not at all; an answer bears its request's id.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, NoReturn

POLL_S = 0.005
ANSWER_S = 30

Answer = dict[str, object]


def serve(control: str, obey: Callable[[str, int], Answer]) -> NoReturn:
    """Do what is asked, one order after the other; the first answer, without an order, says that it is ready."""
    put(f"{control}/answer", {"id": "ready"})
    request = f"{control}/request"
    while True:
        try:
            with open(request, encoding="utf-8") as file:
                asked = json.load(file)
        except FileNotFoundError:
            time.sleep(POLL_S)
            continue
        os.unlink(request)
        try:
            answer = obey(asked["order"], asked["count"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        put(f"{control}/answer", {"id": asked["id"]} | answer)


def ask(control: str, order: str, count: int = 0) -> dict[str, Any]:
    """Give an order to a program that serves; returns its answer, which has an "error" if there is none."""
    identifier = secrets.token_hex(8)
    put(f"{control}/request", {"id": identifier, "order": order, "count": count})
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        with open(f"{control}/answer", encoding="utf-8") as file:
            answer: dict[str, Any] = json.load(file)
        if answer.pop("id") == identifier:
            return answer
        time.sleep(POLL_S)
    return {"error": f"no answer to {order} in {ANSWER_S} s"}


def put(path: str, content: Answer) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.rename(f"{path}.new", path)
