"""The door to iproute2: the program `ip`, which CRIU needs as well.

Rules: what it is told is one batch on its standard input, of words that were checked; what it says is JSON, with
numbers where it has names for them. It is always bounded in time, and its answer in size.
Source: ip(8), ip-link(8), ip-address(8), ip-route(8).
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from ckpt.errors import CommandFailed, FeatureMissing
from ckpt.host.network.namespace import within

_TIMEOUT_S: Final = 20.0
_ANSWER_BYTES_MAX: Final = 16 << 20
_FAILED: Final = re.compile(r"\s*Command failed -:(\d+)\s*$")


def configure(commands: Sequence[str], namespace: int | None = None, *, passed: tuple[int, ...] = ()) -> None:
    """Carry out the commands, like "link set lo up", one after another, up to the first that fails.

    Args:
        commands: Each without the word ip.
        namespace: The network namespace to do it in; None is this process's own.
        passed: Descriptors that a command names as /proc/self/fd/N.

    Raises:
        CommandFailed: names the command that failed, and what ip says.
        FeatureMissing: there is no ip.
    """
    done = _run(["-batch", "-"], namespace, text="".join(f"{each}\n" for each in commands), passed=passed)
    if done.returncode:
        output = " ".join(done.stderr.split())
        failed = _FAILED.search(output)
        number = int(failed[1]) if failed else 1
        raise CommandFailed(
            command=f"ip {commands[min(number, len(commands)) - 1]}",
            status=done.returncode,
            output=_FAILED.sub("", output) or "no reason given",
        )


def ask(question: str, namespace: int | None = None) -> list[dict[str, Any]]:
    """What `ip -details -json` answers to a question like "link show".

    Raises:
        CommandFailed, FeatureMissing: as configure().
    """
    done = _run(["-Numeric", "-details", "-json", *question.split()], namespace)
    reason = " ".join(done.stderr.split()) if done.returncode else ""
    answer: object = []
    if not reason and len(done.stdout) > _ANSWER_BYTES_MAX:
        reason = f"an answer of {len(done.stdout)} characters"
    if not reason:
        try:
            answer = json.loads(done.stdout or "[]")
        except ValueError:
            reason = "no JSON"
    if reason or not isinstance(answer, list):
        raise CommandFailed(command=f"ip {question}", status=done.returncode, output=reason or "no list")
    return [each for each in answer if isinstance(each, dict) and each]


def _run(
    words: list[str], namespace: int | None, *, text: str = "", passed: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = ["ip", *words]
    with contextlib.nullcontext() if namespace is None else within(namespace):
        try:
            return subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
                pass_fds=passed,
            )
        except FileNotFoundError as error:
            raise FeatureMissing(
                feature="the program ip", remedy="Install iproute2: 'apt-get install iproute2'."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(
                command=" ".join(command), status=0, output=f"no answer in {_TIMEOUT_S:.0f} s"
            ) from error
