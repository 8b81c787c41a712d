"""Download packages of another Debian suite, and leave this machine's own apt as it is.

apt runs with its own state, cache and sources below one directory, and with an empty list of installed
packages, so that it names everything that a package needs, the C library included.

Rule: nothing unsigned. The Debian archive keyring verifies the suite, the suite's index the packages.
Rule: no address is written here. The mirror is the one that this machine's own apt uses.
Source: sources.list(5), apt.conf(5), apt-get(8) "indextargets".
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Testing first: it is what becomes stable. Unstable has the package when testing dropped it for a while.
SUITES = ("forky", "sid")

_COMMAND_TIMEOUT_S = 600
_COMPLAINT_CHARACTERS_MAX = 200


class AptError(Exception):
    """A suite or a package could not be had; the text says which, and what apt said."""


@dataclass(frozen=True, slots=True)
class Deb:
    """A downloaded package file and what its control file says of it."""

    path: Path
    name: str
    version: str


class PrivateApt:
    """One newer suite of Debian, seen through an apt of our own below `state`."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._archives = state / "cache" / "archives"
        self._sources = state / "sources.list"

    def open_suite_with(self, package: str, version_min: str) -> str:
        """Choose the first suite that has `package` at `version_min` or newer; return the suite's name.

        A state directory in which a suite was chosen before is used as it is.

        Raises:
            AptError: no suite on any mirror of this machine has it.
        """
        chosen = self._state / "suite"
        if chosen.exists():
            return chosen.read_text().strip()
        refusals = []
        for site in _mirrors():
            for suite in SUITES:
                try:
                    self._update(site, suite)
                    found = self._candidate(package)
                except AptError as error:
                    refusals.append(f"{suite}: {error}")
                    continue
                if _at_least(found, version_min):
                    chosen.write_text(f"{suite}\n")
                    return suite
                refusals.append(f"{suite} has {package} {found}")
        raise AptError(
            f"apt finds no {package} {version_min} or newer ({'; '.join(refusals)}): "
            "it must reach a mirror with all of Debian's suites"
        )

    def download_closure(self, package: str) -> list[Deb]:
        """Download `package` and all that it depends on, without recommendations, sorted by name."""
        shutil.rmtree(self._archives, ignore_errors=True)
        (self._archives / "partial").mkdir(parents=True)
        self._apt("apt-get", "install", "--yes", "--download-only", "--no-install-recommends", package)
        return sorted((_deb(path) for path in self._archives.glob("*.deb")), key=lambda deb: deb.name)

    def download_one(self, package: str) -> Deb:
        """Download `package` alone."""
        folder = self._state / "single" / package
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._apt("apt-get", "download", package, cwd=folder)
        (path,) = folder.glob("*.deb")
        return _deb(path)

    def _update(self, site: str, suite: str) -> None:
        # Everything on the way down stays readable for all: apt downloads as its own user, not as root.
        shutil.rmtree(self._state, ignore_errors=True)
        for folder in ("lists/partial", "cache/archives/partial", "empty.d"):
            (self._state / folder).mkdir(parents=True, mode=0o755)
        (self._state / "status").touch()
        self._sources.write_text(f"deb [signed-by={KEYRING}] {site} {suite} main\n")
        self._apt("apt-get", "update", "--error-on=any")

    def _candidate(self, package: str) -> str:
        shown = self._apt("apt-cache", "show", "--no-all-versions", package)
        for line in shown.splitlines():
            if line.startswith("Version: "):
                return line.removeprefix("Version: ").strip()
        raise AptError(f"it has no package {package}")

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        print("+", program, *arguments, flush=True)
        # Options come after this machine's own configuration, and win.
        return _run([program, *self._options(), *arguments], cwd=cwd)

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self._state,
            "Dir::State::lists": self._state / "lists",
            "Dir::State::status": self._state / "status",
            "Dir::Cache": self._state / "cache",
            "Dir::Cache::archives": self._archives,
            "Dir::Etc::sourcelist": self._sources,
            "Dir::Etc::sourceparts": self._state / "empty.d",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": self._state / "empty.d",
            "APT::Default-Release": "",
            "APT::Architecture": _native_architecture(),
            "APT::Architectures": _native_architecture(),
            "Acquire::Languages": "none",
            # A mirror may be a frozen snapshot, whose signature is right and whose date has passed.
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Retries": "3",
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def upstream_version(version: str) -> str:
    """The version without its epoch and Debian revision: the upstream version."""
    return version.rpartition(":")[2].rpartition("-")[0] or version


def _mirrors() -> list[str]:
    """The mirrors of this machine's apt, the one of its own release first."""
    mirrors = _known_mirrors()
    if not mirrors:
        # apt names only mirrors whose indexes it has; a fresh image may come without any.
        _run(["apt-get", "update"])
        mirrors = _known_mirrors()
    if not mirrors:
        raise AptError('this machine\'s apt reaches no Debian mirror: see what "apt-get update" says')
    return mirrors


def _known_mirrors() -> list[str]:
    wanted = ["--format", "$(RELEASE) $(SITE)", "Created-By: Packages", "Component: main"]
    listed = _run(["apt-get", "indextargets", *wanted])
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    pairs = [line.split(" ", 1) for line in listed.splitlines() if " " in line]
    pairs.sort(key=lambda pair: pair[0] != codename)
    return list(dict.fromkeys(site for _, site in pairs))


def _native_architecture() -> str:
    return _run(["dpkg", "--print-architecture"]).strip()


def _at_least(version: str, version_min: str) -> bool:
    command = ["dpkg", "--compare-versions", version, "ge", version_min]
    return subprocess.run(command, check=False).returncode == 0


def _deb(path: Path) -> Deb:
    fields = _run(["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", str(path)])
    name, version = fields.split(" ", 1)
    return Deb(path=path, name=name, version=version)


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
    )
    if done.returncode != 0:
        print(textwrap.indent(done.stdout + done.stderr, "  "), end="", flush=True)
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        complaint = next((line for line in said if line.startswith("E: ")), said[-1])
        raise AptError(f"{command[0]} said {complaint[:_COMPLAINT_CHARACTERS_MAX]!r}")
    return done.stdout
