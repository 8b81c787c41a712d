"""Install checkpointctl, which the tests read our podman archives with, into a directory of its own.

Debian has it in newer suites only, linked with their C library: the directory holds that one too.

    bin/checkpointctl  the program to call
    root/              the packages, as they unpack
    MANIFEST           the packages all this came from: name, version, sha256

Rule: what stands in place has run. A new one is built beside it, run, and put in its place.
Source: ld.so(8), "--library-path".
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from private_apt import AptError, Deb, PrivateApt

CHECKPOINTCTL_VERSION_MIN = "1.3"

_WRAPPER = """\
#!/bin/sh
# Run checkpointctl with the loader and the C library beside it.
self=$0
[ -L "$self" ] && self=$(readlink -f "$self")
root=${{self%/*}}/../root
exec "$root/{loader}" --library-path "$root/{folder}" "$root/usr/bin/checkpointctl" "$@"
"""


def main() -> int:
    """Install it; the last line printed says what stands there, or what failed."""
    parser = argparse.ArgumentParser(description="Install checkpointctl into a directory of its own.")
    parser.add_argument("prefix", type=Path, help="the directory to make or replace")
    parser.add_argument("--apt-state", type=Path, required=True, help="the private apt's directory")
    options = parser.parse_args()
    try:
        version = install(options.prefix, PrivateApt(options.apt_state))
    except (AptError, OSError, subprocess.SubprocessError) as error:
        print(error)
        return 1
    print(f"checkpointctl {version} in {options.prefix}")
    return 0


def install(prefix: Path, apt: PrivateApt) -> str:
    """Put a checkpointctl that runs here into `prefix`; return its Debian version.

    Raises:
        AptError: it could not be downloaded and verified.
        CalledProcessError: it does not run here; what stood in `prefix` stays.
    """
    apt.open_suite_with("checkpointctl", CHECKPOINTCTL_VERSION_MIN)
    debs = apt.download_closure("checkpointctl")
    new = prefix.with_name(f"{prefix.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        program = _assemble(debs, new)
        subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(prefix, ignore_errors=True)
        new.rename(prefix)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return next(deb.version for deb in debs if deb.name == "checkpointctl")


def _assemble(debs: list[Deb], new: Path) -> Path:
    """Unpack the packages, and write the program that starts what is in them; returns its path."""
    root = new / "root"
    root.mkdir(parents=True)
    for deb in debs:
        subprocess.run(["dpkg-deb", "--extract", deb.path, root], check=True)
    loaders = [path for path in root.glob("usr/lib/*/ld-*.so.*") if path.is_file()]
    if len(loaders) != 1:
        raise AptError(f"expected one dynamic loader in the packages, found {loaders}")
    loader = loaders[0].relative_to(root)
    program = new / "bin" / "checkpointctl"
    program.parent.mkdir()
    program.write_text(_WRAPPER.format(loader=loader, folder=loader.parent))
    program.chmod(0o755)
    (new / "MANIFEST").write_text(_manifest(debs))
    return program


def _manifest(debs: list[Deb]) -> str:
    lines = [f"{deb.name} {deb.version} {hashlib.sha256(deb.path.read_bytes()).hexdigest()}" for deb in debs]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
