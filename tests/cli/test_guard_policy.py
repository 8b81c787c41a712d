"""A policy is understood wholly, or refused with the key and the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckpt.cli.guard_policy import read_policy, trigger
from ckpt.cli.main import main
from ckpt.errors import Usage
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    KillVictim,
    MigrateAway,
    Notify,
    RaiseLimit,
    Reclaim,
    SendSignal,
    StepName,
    TakeCheckpoint,
)
from ckpt.model.guarding import (
    Policy,
)
from ckpt.units import MILLISECOND, SECOND, ByteCount, Nanoseconds

DOCUMENT = Path(__file__).parents[2] / "docs/guard.md"


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text)
    return read_policy(str(path))


def test_the_example_of_the_document_has_every_step_and_means_what_it_says(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    policy = read(tmp_path, example[1])
    assert policy == Policy(
        at=AtShare(share=0.8),
        margin=0.1,
        victims=("batch-*", "sim", "*"),
        steps=(
            Notify(
                command=("/usr/bin/logger", "-t", "ckpt", "memory is short"),
                timeout_ns=Nanoseconds(5 * SECOND),
            ),
            Reclaim(),
            RaiseLimit(by=ByteCount(256 << 20), up_to=ByteCount(12 << 30)),
            SendSignal(number=10, patience_ns=Nanoseconds(3 * SECOND)),
            TakeCheckpoint(at=AtShare(share=0.9)),
            MigrateAway(host="root@big-host", options=("--time", "elapsed"), at=AtShare(share=0.95)),
            KillVictim(at=AtOom()),
        ),
    )
    assert {step.name for step in policy.steps} == set(StepName)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('at = "80%"\nvictim = ["a"]\n', "line 2: 'victim' is not a key of a policy"),
        (
            '[[step]]\ndo = "reclaim"\n\n[[step]]\ndo = "kill"\nwait = "2s"\n',
            "line 6: 'wait' is not a key of the step 'kill'",
        ),
        ('[[step]]\ndo = "explode"\n', "line 2: 'do' = 'explode'"),
        ('[[step]]\nat = "oom"\n', "number 1 does not say what to 'do'"),
        ('[[step]]\ndo = "raise"\nby = "1G"\n', "line 2: 'do' = 'raise' needs the key 'up-to'"),
        ('[[step]]\ndo = "raise"\nby = 1024\nup-to = "1G"\n', "line 3: 'by' is a int, and must be a str"),
        ('[[step]]\ndo = "signal"\nsignal = "NONE"\n', "line 3: 'signal' = 'NONE'"),
        ('[[step]]\ndo = "notify"\ncommand = []\n', "line 3: 'command' is a list of words"),
        ('[[step]]\ndo = "checkpoint"\nresume = "no"\n', "line 3: 'resume' is a str"),
        ('margin = "100%"\n', "line 1: 'margin'"),
        ('at = "101%"\n', "line 1: 'at' = '101%': 101% is not a share"),
        ('at = "psi some 3s/2s"\n', "must be more than zero and fit"),
        ("step = 3\n", "line 1: 'step' is a list of tables"),
        ("at = \n", "is no TOML"),
        ("\xff", "is no TOML"),
        ("x = " + "[" * 5000, "it is nested too deep"),
        ('at = "80%"\nmargin = "85%"\n', "line 2: 'margin' cannot be: A margin of 85%"),
        ("\nstep = []\n", "line 2: 'step' cannot be: A policy has 1 to 32 steps"),
        ('[[step]]\ndo = "migrate"\nto = ""\n', "line 3: 'to' = '': it is no host"),
        ('[[step]]\ndo = "notify"\ncommand = ["a\\u0000"]\n', "line 3: 'command' has a word with a NUL"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "policy.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(Usage, match=re.escape(message)):
        read_policy(str(tmp_path / "policy.toml"))


def test_a_policy_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="cannot be read: No such file"):
        read_policy(str(tmp_path / "none"))
    (tmp_path / "large").write_bytes(b"#" * (300 << 10))
    with pytest.raises(Usage, match="larger than"):
        read_policy(str(tmp_path / "large"))


def test_triggers_are_read_as_they_are_shown() -> None:
    for text in ("90%", "87.5%", "oom", "psi full 100ms/2000ms"):
        assert str(trigger(text)) == text
    assert trigger("psi some 200ms/2s") == AtPsi(
        full=False, stall_ns=Nanoseconds(200 * MILLISECOND), window_ns=Nanoseconds(2 * SECOND)
    )
    for text in ("", "90", "soon", "psi some 2s"):
        with pytest.raises(Usage):
            trigger(text)


def test_an_at_that_would_change_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[[step]]\ndo = "checkpoint"\nat = "80%"\n')
    assert main(["guard", "--job", "nobody", "--at", "70%", "--policy", str(path)]) == 2
    assert "--at changes nothing" in capsys.readouterr().err
    assert main(["guard", "--job", "nobody", "--policy", str(path)]) == 63
