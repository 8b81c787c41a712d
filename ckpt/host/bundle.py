"""What of this machine another host needs to run ckpt: its program, the packages it imports, CRIU, the init of jobs.

Rules: what runs here is what is sent, nothing is fetched. Of a package go the files that its installer recorded. The
same files give the same digest: it tells whether a host has them already. The other side computes it anew
(ckpt/remote/setup_process.py), so that a file which changed meanwhile is found.
Source: the Python packaging guide, "Recording installed projects" and "Dependency specifiers"; pax(1).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.machinery
import importlib.metadata
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

import ckpt
from ckpt import VERSION
from ckpt.errors import FeatureMissing, OsRefused
from ckpt.host.criu import engine, locate
from ckpt.host.launch import init_path
from ckpt.model.progress import Progress
from ckpt.units import ByteCount, Digest

ROOTS: Final = ("ckpt", "pycriu")
"""The packages that are sent, with all that they require; nothing requires pycriu, which is not on the index."""

PYTHON_TAG: Final = importlib.machinery.EXTENSION_SUFFIXES[0].strip(".").removesuffix(".so")
"""What compiled modules here are made for: interpreter, minor version, machine, C library."""

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledFile:
    """A file of the bundle: its path there; its content is `content`, or that of the file `source`."""

    path: str
    source: str = ""
    content: bytes = b""
    is_executable: bool
    size_bytes: ByteCount
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Everything that is sent: packages in lib/, CRIU in criu/, the init in libexec/; ordered by path."""

    version: str
    criu_version: str
    init_name: str
    files: tuple[BundledFile, ...]

    @property
    def size_bytes(self) -> ByteCount:
        """What the files take."""
        return ByteCount(sum(file.size_bytes for file in self.files))

    @property
    def digest(self) -> str:
        """The SHA-256 over path, kind and digest of each file, in hex."""
        whole = hashlib.sha256()
        for file in self.files:
            whole.update(f"{file.path}\0{file.is_executable:d}\0{file.digest}\n".encode())
        return whole.hexdigest()

    def send(self, sink: Callable[[bytes], None], progress: Progress) -> None:
        """Give it to `sink` piece by piece, as a tar that is compressed with gzip.

        Raises:
            OsRefused: a file cannot be read any more, or has become shorter.
        """
        progress.expect(self.size_bytes)
        # Level 1 keeps up with most links; tarfile's own gzip takes no level before Python 3.12.
        with (
            gzip.GzipFile(
                fileobj=cast("BinaryIO", _Sink(sink)), mode="wb", compresslevel=1, mtime=0
            ) as packed,
            tarfile.open(fileobj=packed, mode="w|", bufsize=_PIECE_BYTES) as archive,
        ):
            for file in self.files:
                member = tarfile.TarInfo(file.path)
                member.size = file.size_bytes
                member.mode = 0o755 if file.is_executable else 0o644
                with _reading(file) as stream:
                    try:
                        archive.addfile(member, stream)
                    except OSError as error:  # tarfile's own, where there is less than was announced
                        raise _unreadable(file.source, error.strerror or str(error)) from None
                progress.moved(file.size_bytes)


def collect() -> Bundle:
    """What this machine has, read and hashed.

    Raises:
        FeatureMissing: a package is not installed as packages are, or CRIU needs libraries of this machine.
        CriuMissing, OsRefused: something is not there, or cannot be read.
    """
    criu = locate.find_criu()
    init = init_path()
    found: dict[str, BundledFile] = {}
    packages = _packages()
    for path, source in (
        *_package_files(packages),
        *_criu_files(criu),
        (f"libexec/{os.path.basename(init)}", init),
    ):
        found[path] = _file(path, source)
    # A checkout may be edited at any moment: its few bytes are read once.
    for path, source in _files_below(Path(ckpt.__file__).parent, "lib/ckpt"):
        found[path] = _content(path, _read(source))
    own = f"lib/ckpt-{VERSION}.dist-info/METADATA"
    found[own] = _content(own, _metadata(packages))
    return Bundle(
        version=VERSION,
        criu_version=str(engine.version(criu)),
        init_name=os.path.basename(init),
        files=tuple(found[path] for path in sorted(found)),
    )


def _packages() -> dict[str, importlib.metadata.Distribution]:
    """The roots and what they require, by normalized name; what a marker excludes here is not installed here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [(root, True) for root in ROOTS]
    while wanted:
        name, is_required = wanted.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if is_required:
                raise _not_whole(name, "is not installed") from None
            continue
        wanted += list(_requirements(found[name]))
    return found


def _requirements(package: importlib.metadata.Distribution) -> Iterator[tuple[str, bool]]:
    """The names that a package requires, and whether it does so everywhere; those of its extras are left out."""
    for line in package.requires or ():
        named = _NAME.match(line)
        _, _, marker = line.partition(";")
        if named and "extra" not in marker:
            yield re.sub(r"[-_.]+", "-", named[0]).lower(), not marker.strip()


def _package_files(packages: dict[str, importlib.metadata.Distribution]) -> Iterator[tuple[str, str]]:
    for name, package in packages.items():
        # A checkout is installed by a link to it: its files are found beside this one.
        if name == "ckpt":
            continue
        if package.files is None:
            raise _not_whole(name, "does not say which files it has")
        for path in package.files:
            source = str(package.locate_file(path))
            # Scripts stand outside, and nobody calls them.
            outside = path.is_absolute() or ".." in path.parts
            if not outside and _is_sent(path.parts) and os.path.isfile(source):
                yield f"lib/{path.as_posix()}", source


def _is_sent(parts: tuple[str, ...]) -> bool:
    return "__pycache__" not in parts and not parts[-1].endswith(".pyc")


def _files_below(folder: Path, place: str) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and _is_sent(inside.parts):
            yield f"{place}/{inside.as_posix()}", str(path)


def _criu_files(criu: Path) -> Iterator[tuple[str, str]]:
    prefix = criu.resolve().parent.parent
    if not (prefix / "lib" / "criu.bin").is_file():
        raise FeatureMissing(
            feature=f"a CRIU that runs elsewhere: {criu} needs libraries of this host",
            remedy="Run scripts/setup --force-criu, which installs one that brings its own; unset CKPT_CRIU.",
        )
    return _files_below(prefix, "criu")


def _metadata(packages: dict[str, importlib.metadata.Distribution]) -> bytes:
    """What lets a ckpt that was installed from a bundle make one itself."""
    required = "".join(f"Requires-Dist: {name}\n" for name in sorted(packages) if name not in ROOTS)
    return f"Metadata-Version: 2.1\nName: ckpt\nVersion: {VERSION}\n{required}".encode()


def _file(path: str, source: str) -> BundledFile:
    try:
        with open(source, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise _unreadable(source, error.strerror or str(error)) from None
    return BundledFile(
        path=path,
        source=source,
        is_executable=bool(status.st_mode & 0o100),
        size_bytes=ByteCount(status.st_size),
        digest=Digest(digest),
    )


def _read(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise _unreadable(source, error.strerror or str(error)) from None


def _content(path: str, content: bytes) -> BundledFile:
    return BundledFile(
        path=path,
        content=content,
        is_executable=False,
        size_bytes=ByteCount(len(content)),
        digest=Digest(hashlib.sha256(content).hexdigest()),
    )


def _reading(file: BundledFile) -> BinaryIO:
    if not file.source:
        return io.BytesIO(file.content)
    try:
        return open(file.source, "rb")
    except OSError as error:
        raise _unreadable(file.source, error.strerror or str(error)) from None


class _Sink(io.RawIOBase):
    """Hands on what is written to it."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self._sink(bytes(content))
        return len(content)


def _not_whole(name: str, reason: str) -> FeatureMissing:
    return FeatureMissing(
        feature=f"the Python package {name} as pip installs it: it {reason}",
        remedy="Run ckpt from a virtual environment that scripts/setup made.",
    )


def _unreadable(source: str, reason: str) -> OsRefused:
    return OsRefused(operation="send", subject=source, reason=reason, remedy="Try again.")
