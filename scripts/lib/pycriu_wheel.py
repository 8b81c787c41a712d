"""Make a wheel of pycriu, CRIU's protobuf classes and image readers, out of Debian's package of it.

pycriu is not on PyPI. Debian's own copy cannot be imported from a virtual environment, since with it would
come Debian's older google.protobuf.

Rule: the same package gives the same wheel, byte for byte.
Source: the binary distribution format, PEP 427; RECORD, PEP 376.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from private_apt import AptError, PrivateApt, upstream_version

PYCRIU_VERSION_MIN = "4.2"

_METADATA = """\
Metadata-Version: 2.1
Name: pycriu
Version: {version}
Summary: Python bindings of CRIU, from Debian's python3-pycriu {debian_version}
License: LGPL-2.1-only
Requires-Dist: protobuf>=3.20
"""

_WHEEL = """\
Wheel-Version: 1.0
Generator: ckpt set-up
Root-Is-Purelib: true
Tag: py3-none-any
"""


def main() -> int:
    """Make the wheel; the last line printed is its path, or what failed."""
    parser = argparse.ArgumentParser(description="Make a wheel of pycriu out of Debian's package.")
    parser.add_argument("folder", type=Path, help="where the wheel shall be")
    parser.add_argument("--apt-state", type=Path, required=True, help="the private apt's directory")
    options = parser.parse_args()
    try:
        wheel = build(options.folder, PrivateApt(options.apt_state))
    except (AptError, OSError, subprocess.SubprocessError) as error:
        print(error)
        return 1
    print(wheel)
    return 0


def build(folder: Path, apt: PrivateApt) -> Path:
    """Download python3-pycriu and write it to `folder` as a wheel; return the wheel's path.

    Raises:
        AptError: it could not be downloaded and verified, or it has no pycriu inside.
    """
    apt.open_suite_with("python3-pycriu", PYCRIU_VERSION_MIN)
    deb = apt.download_one("python3-pycriu")
    version = upstream_version(deb.version)
    with tempfile.TemporaryDirectory(prefix="ckpt-pycriu-") as unpacked:
        subprocess.run(["dpkg-deb", "--extract", deb.path, unpacked], check=True)
        members = _modules(Path(unpacked) / "usr/lib/python3/dist-packages")
    if "pycriu/__init__.py" not in members:
        raise AptError(f"python3-pycriu {deb.version} has no pycriu inside")
    info = f"pycriu-{version}.dist-info"
    members[f"{info}/METADATA"] = _METADATA.format(version=version, debian_version=deb.version).encode()
    members[f"{info}/WHEEL"] = _WHEEL.encode()
    members[f"{info}/RECORD"] = _record(members, f"{info}/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"pycriu-{version}-py3-none-any.whl"
    _write_archive(members, wheel)
    return wheel


def _modules(packages: Path) -> dict[str, bytes]:
    """The content of every file of the pycriu package, by its name in the wheel."""
    return {
        str(path.relative_to(packages)): path.read_bytes()
        for path in sorted((packages / "pycriu").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _record(members: dict[str, bytes], own_name: str) -> bytes:
    lines = []
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{own_name},,\n"]).encode()


def _write_archive(members: dict[str, bytes], wheel: Path) -> None:
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            # ZipInfo's own date is 1980-01-01: no clock goes into the wheel.
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content)
    os.replace(partial, wheel)


if __name__ == "__main__":
    sys.exit(main())
