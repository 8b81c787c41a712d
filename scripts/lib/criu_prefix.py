"""Install a newer Debian's CRIU into a directory of its own, with every library it needs.

The directory holds its own C library and dynamic loader, so that the system's stay untouched:

    bin/criu        the program to call
    lib/criu        the dynamic loader, named so that ps shows "criu"
    lib/criu.bin    CRIU itself
    lib/*.so.*      its libraries
    MANIFEST        the packages all this came from: name, version, sha256

Rule: what stands in place has passed the self-test. A new one is built beside it, tested, exchanged.
Rule: helpers that CRIU calls (sh, ip, nft, tar) are the system's, and must not see these libraries:
LD_LIBRARY_PATH is never set.
Source: ld.so(8), "--list", "--library-path" and "--argv0".
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from criu_selftest import SelfTestError, prove
from private_apt import AptError, Deb, PrivateApt

CRIU_VERSION_MIN = "4.2"

_WRAPPER = """\
#!/bin/sh
# Run CRIU with the loader and the libraries beside it. LD_LIBRARY_PATH would be inherited by CRIU's
# helper programs, which are the system's own.
self=$0
[ -L "$self" ] && self=$(readlink -f "$self")
lib=${self%/*}/../lib
exec "$lib/criu" --library-path "$lib" --argv0 criu "$lib/criu.bin" "$@"
"""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class PrefixError(Exception):
    """The prefix could not be made; the text says at what."""


def main() -> int:
    """Make the prefix; the last line printed says what stands there, or what failed."""
    parser = argparse.ArgumentParser(description="Install CRIU into a directory of its own.")
    parser.add_argument("prefix", type=Path, help="the directory to make or replace")
    parser.add_argument("--apt-state", type=Path, required=True, help="the private apt's directory")
    options = parser.parse_args()
    try:
        version = install(options.prefix, PrivateApt(options.apt_state))
    except (PrefixError, SelfTestError, AptError, OSError, subprocess.SubprocessError) as error:
        print(error)
        return 1
    print(f"CRIU {version} in {options.prefix}")
    return 0


def install(prefix: Path, apt: PrivateApt) -> str:
    """Put a CRIU that passed the self-test into `prefix`; return its Debian version.

    Raises:
        AptError: it could not be downloaded and verified.
        SelfTestError: it does not work here; what stood in `prefix` stays.
        PrefixError: the packages are not what they were, so it cannot be put together.
    """
    apt.open_suite_with("criu", CRIU_VERSION_MIN)
    debs = apt.download_closure("criu")
    new = prefix.with_name(f"{prefix.name}.new")
    unpacked = prefix.with_name(f"{prefix.name}.unpacked")
    for leftover in (new, unpacked):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        _unpack(debs, unpacked)
        _assemble(unpacked, new)
        (new / "MANIFEST").write_text(_manifest(debs))
        prove(str(new / "bin" / "criu"))
        _put_in_place(new, prefix)
    finally:
        for leftover in (new, unpacked):
            shutil.rmtree(leftover, ignore_errors=True)
    return next(deb.version for deb in debs if deb.name == "criu")


def _unpack(debs: list[Deb], root: Path) -> None:
    root.mkdir(parents=True)
    for deb in debs:
        subprocess.run(["dpkg-deb", "--extract", deb.path, root], check=True)


def _assemble(root: Path, new: Path) -> None:
    lib = new / "lib"
    lib.mkdir(parents=True)
    loader = _only(root, "ld-*.so.*", "ld64.so.*")
    program = _only(root, "criu")
    shutil.copy2(loader, lib / "criu")
    shutil.copy2(program, lib / "criu.bin")
    for soname, library in _libraries(loader, program, root).items():
        shutil.copy2(library, lib / soname)
    wrapper = new / "bin" / "criu"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)


def _only(root: Path, *patterns: str) -> Path:
    """The one executable below `root` whose name fits one of the patterns."""
    found = {
        path.resolve()
        for pattern in patterns
        for path in root.rglob(pattern)
        if path.is_file() and os.access(path, os.X_OK)
    }
    if len(found) != 1:
        raise PrefixError(f"expected one {patterns[0]} in the packages, found {sorted(found)}")
    return found.pop()


def _libraries(loader: Path, program: Path, root: Path) -> dict[str, Path]:
    """What the loader would load for `program` out of `root` alone, by name."""
    folders = {str(path.parent) for path in root.rglob("lib*.so.*")}
    options = ["--inhibit-cache", "--library-path", ":".join(sorted(folders)), "--list"]
    listed = subprocess.run([loader, *options, program], check=True, capture_output=True, text=True).stdout
    libraries = {}
    for soname, path in re.findall(r"^\s*(\S+) => (.+) \(0x[0-9a-f]+\)$", listed, re.MULTILINE):
        if not Path(path).is_relative_to(root):
            raise PrefixError(f"{soname} is not in the packages: the loader found {path}")
        if Path(path).resolve() != loader:
            libraries[soname] = Path(path)
    if "not found" in listed or not libraries:
        raise PrefixError(f"the packages lack libraries: {listed}")
    return libraries


def _manifest(debs: list[Deb]) -> str:
    lines = [f"{deb.name} {deb.version} {hashlib.sha256(deb.path.read_bytes()).hexdigest()}" for deb in debs]
    return "\n".join([*lines, ""])


def _put_in_place(new: Path, prefix: Path) -> None:
    """Exchange `new` for `prefix` in one step: at no moment is there no CRIU."""
    if not prefix.exists():
        new.rename(prefix)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    outcome = libc.renameat2(_AT_FDCWD, bytes(new), _AT_FDCWD, bytes(prefix), _RENAME_EXCHANGE)
    if outcome != 0:
        raise PrefixError(f"cannot exchange {new} and {prefix}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main())
