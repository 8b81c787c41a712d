"""Who stores dumps: ckpt and its peers, each used in the same three ways.

The peers are measured from outside, as whole commands; ckpt from inside its process (ckpt_store.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).resolve().parent
ERROR_LINES = 12


class ToolError(Exception):
    """A tool did not do what it was told; the text has its last words."""


@dataclass(frozen=True)
class Sample:
    """What one use of a tool took."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


class Contender(Protocol):
    """A tool with one store of its own below a directory that is given to each call.

    `start_s` is what it takes before it does anything: interpreter and imports, or deriving the key.
    """

    name: str
    packages: dict[str, str]

    def prepare(self, place: Path) -> None: ...
    def ingest(self, place: Path, images: Path, label: str) -> Sample: ...
    def fetch(self, place: Path, label: str, target: Path) -> tuple[Sample, Path]: ...
    def start_s(self, place: Path) -> float | None: ...


class Tar:
    """What a careful shell script does: `tar | zstd -1 -T2`, then a flush."""

    name = "tar+zstd"
    packages = {"tar": "tar", "zstd": "zstd"}  # noqa: RUF012  (constant)

    def prepare(self, place: Path) -> None:
        (place / "store").mkdir()

    def ingest(self, place: Path, images: Path, label: str) -> Sample:
        script = 'set -o pipefail; tar -C "$1" -cf - . | zstd -q -1 -T2 -o "$2"'
        file = place / "store" / f"{label}.tar.zst"
        return metered(place, ["bash", "-c", script, "bash", str(images), str(file)], durable=True)

    def fetch(self, place: Path, label: str, target: Path) -> tuple[Sample, Path]:
        script = 'set -o pipefail; zstd -q -d -c "$1" | tar -C "$2" -xf -'
        file = place / "store" / f"{label}.tar.zst"
        return metered(place, ["bash", "-c", script, "bash", str(file), str(target)]), target

    def start_s(self, place: Path) -> float | None:  # noqa: ARG002
        return None


class Restic:
    """restic, always encrypted; its own choice of compression (repository format 2)."""

    name = "restic"
    packages = {"restic": "restic"}  # noqa: RUF012

    def prepare(self, place: Path) -> None:
        (place / "password").write_text("bench\n")
        self._run(place, "init", "--repository-version", "2")

    def ingest(self, place: Path, images: Path, label: str) -> Sample:
        return self._run(place, "backup", "--tag", label, ".", cwd=images, durable=True)

    def fetch(self, place: Path, label: str, target: Path) -> tuple[Sample, Path]:
        sample = self._run(place, "restore", "latest", "--tag", label, "--target", str(target))
        # It restores below the target what was backed up, by its whole path.
        inside = next(path for path in target.rglob("inventory.img")).parent
        return sample, inside

    def start_s(self, place: Path) -> float | None:
        return self._run(place, "snapshots").seconds

    def _run(self, place: Path, *words: str, cwd: Path | None = None, durable: bool = False) -> Sample:
        environment = {"RESTIC_CACHE_DIR": str(place / "cache"), "HOME": str(place)}
        options = ["--repo", str(place / "store"), "--password-file", str(place / "password"), "--quiet"]
        return metered(place, ["restic", *options, *words], environment, cwd, durable=durable)


class Borg:
    """borg without encryption, compressing as tar+zstd does."""

    name = "borg"
    packages = {"borg": "borgbackup"}  # noqa: RUF012

    def prepare(self, place: Path) -> None:
        self._run(place, "init", "--encryption=none")

    def ingest(self, place: Path, images: Path, label: str) -> Sample:
        return self._run(
            place, "create", "--compression", "zstd,1", f"::{label}", ".", cwd=images, durable=True
        )

    def fetch(self, place: Path, label: str, target: Path) -> tuple[Sample, Path]:
        return self._run(place, "extract", f"::{label}", cwd=target), target

    def start_s(self, place: Path) -> float | None:
        return self._run(place, "list").seconds

    def _run(self, place: Path, *words: str, cwd: Path | None = None, durable: bool = False) -> Sample:
        environment = {
            "BORG_REPO": str(place / "store"),
            "BORG_BASE_DIR": str(place),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_EXIT_CODES": "legacy",
        }
        return metered(place, ["borg", *words], environment, cwd, durable=durable)


class Ckpt:
    """ckpt's store, by its API in a fresh process; the second checkpoint has the first as its parent."""

    name = "ckpt"
    packages: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self._last: dict[Path, str] = {}
        self._ids: dict[tuple[Path, str], str] = {}
        self._around_s: dict[Path, float] = {}

    def prepare(self, place: Path) -> None:
        self._last.pop(place, None)

    def ingest(self, place: Path, images: Path, label: str, profile: Path | None = None) -> Sample:
        words = ["ingest", str(place / "store"), str(images)]
        words += [self._last[place]] if place in self._last else []
        sample, found = self._run(place, words, profile)
        self._last[place] = self._ids[place, label] = found
        return sample

    def fetch(
        self, place: Path, label: str, target: Path, profile: Path | None = None
    ) -> tuple[Sample, Path]:
        words = ["fetch", str(place / "store"), self._ids[place, label], str(target)]
        return self._run(place, words, profile)[0], target

    def start_s(self, place: Path) -> float | None:
        return self._around_s[place]

    def _run(self, place: Path, words: list[str], profile: Path | None) -> tuple[Sample, str]:
        inner = place / "inner.json"
        command = [sys.executable, str(HERE / "ckpt_store.py"), str(inner)]
        command += ["--profile", str(profile)] if profile else []
        outer = metered(place, [*command, *words])
        facts = json.loads(inner.read_text())
        sample = Sample(
            seconds=facts["seconds"], cpu_seconds=facts["cpu_seconds"], peak_mib=facts["peak_mib"]
        )
        self._around_s[place] = outer.seconds - sample.seconds
        return sample, facts["id"]


def every() -> tuple[Contender, ...]:
    return Ckpt(), Tar(), Restic(), Borg()


def missing(contender: Contender) -> dict[str, str]:
    """The programs that are not installed, each with its Debian package."""
    return {
        program: package for program, package in contender.packages.items() if shutil.which(program) is None
    }


def metered(
    place: Path,
    command: list[str],
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    *,
    durable: bool = False,
) -> Sample:
    """Run a command to its end.

    Raises:
        ToolError: it failed.
    """
    result, log = place / "meter.json", place / "meter.log"
    meter = [sys.executable, "-I", "-S", str(HERE / "meter.py"), str(result), str(place) if durable else "-"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*meter, "--", *command],
            env=os.environ | (environment or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            # The session is this command's own: it ends with all that the command started.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code != 0:
        words = log.read_text(errors="replace").splitlines()[-ERROR_LINES:]
        raise ToolError(f"{command[0]} exited with {code}:\n" + "\n".join(f"    {word}" for word in words))
    return Sample(**json.loads(result.read_text()))
