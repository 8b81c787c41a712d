"""Try the guard on cgroup version 2 in a virtual machine, on a host whose memory controller is of version 1.

The machine is made of this host: the files of its installed packages, this checkout with its environment, CRIU. Only
the kernel is fetched: Debian's cloud kernel, which has NVMe and ext4 built in, so that it needs no initial ramdisk.

Rules: without KVM a program runs some 15 times slower: what is tried is what happens, never how long it takes.
The guest says what it tries on its console, and its last line is the verdict.
Source: qemu-system-x86_64(1); mke2fs(8) "-d"; Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from private_apt import AptError, PrivateApt

CHECKOUT = Path(__file__).resolve().parent.parent.parent
GUEST = "scripts/lib/guard_v2_guest.py"
VERDICT = re.compile(r"^guest: (passed|failed)", re.MULTILINE)

OOMD_VERSION_MIN = "260"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
# What the guest needs beside what every Debian has.
PACKAGES = ("python3", "iproute2", "nftables", "procps", "kmod", "mount", "tar")
MODULES = ("kernel/net", "kernel/lib", "kernel/fs/fuse", "kernel/drivers/block/zram", "kernel/crypto")
NOT_NEEDED = re.compile(
    r"/usr/share/(doc|man|info|locale|i18n|perl)/|/test/|/lib/valgrind/|/usr/lib/.*/gconv/|/perl-base/"
)
TOOLS_NOT_NEEDED = re.compile(
    r"^(mypy|ruff|selenium|pip|setuptools|hypothesis|_pytest|pytest|trio|grimp|importlinter|[0-9a-f]{20}__mypyc)"
)

HELP = """\
Boots a virtual machine (QEMU, without KVM) in which the memory controller is of cgroup version 2, runs the scenarios
of the guard in it, and prints what they say. A machine with cgroup version 2 does not need this: the tests of
tests/system run there as they are.

Needs root, qemu-system-x86_64 ('apt-get install qemu-system-x86'), and for the first run apt's mirror for the kernel.
Takes about five minutes on a quiet machine; on a busy one it may fail by the time limits of ckpt itself. Exit code 0:
all passed.
"""


class Missing(Exception):
    """Something that the machine is made of is not here."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/guard-v2-vm",
        description=HELP,
        epilog="Example: scripts/guard-v2-vm",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="*", help="the scenarios to run (default: all)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("/var/cache/ckpt-vm"),
        help="where the kernel is kept (%(default)s)",
    )
    parser.add_argument("--memory", default="768M", help="the machine's memory (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds until it is given up (%(default)s)"
    )
    parser.add_argument(
        "--others",
        action="store_true",
        help="fetch systemd-oomd (of a newer Debian) and nohang, to try them as well",
    )
    parser.add_argument("--extra", type=Path, help="a directory whose files are put into the machine, too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("scripts/guard-v2-vm: this needs root.", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="ckpt-vm-") as made:
            return run(options, Path(made))
    except (Missing, subprocess.CalledProcessError) as error:
        print(f"scripts/guard-v2-vm: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, folder: Path) -> int:
    """Make the machine and run it; gives the exit code."""
    for program, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
        ("depmod", "kmod"),
    ):
        if shutil.which(program) is None:
            raise Missing(f"there is no {program}: apt-get install {package}")
    began = time.monotonic()
    kernel = kernel_in(options.cache)
    tree = folder / "tree"
    extras = [options.extra] if options.extra is not None else []
    if options.others:
        extras.append(others_in(options.cache))
    fill(tree, kernel, extras)
    (tree / "ckpt-scenarios").write_text(" ".join(options.scenario))
    image = folder / "root.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, "1500M"], check=True
    )
    shutil.rmtree(tree)
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)
    return boot(next(kernel.glob("boot/vmlinuz-*")), image, options)


def kernel_in(cache: Path) -> Path:
    """The directory with the unpacked package of the kernel, which is fetched if it is not there."""
    unpacked = cache / "kernel"
    if list(unpacked.glob("boot/vmlinuz-*")):
        return unpacked
    shutil.rmtree(unpacked, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    depends = output("apt-cache", "depends", KERNEL_PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise Missing(f"apt knows no {KERNEL_PACKAGE}: apt-get update")
    subprocess.run(["apt-get", "-q", "download", found[1]], cwd=cache, check=True)
    (deb,) = cache.glob(f"{found[1]}_*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
    deb.unlink()
    return unpacked


def others_in(cache: Path) -> Path:
    """The directory with the files of other OOM killers, which are fetched if they are not there.

    systemd-oomd comes with its libraries, below /opt/newer: this host's own may be too old for the hook.
    """
    others = cache / "others"
    if others.is_dir():
        return others
    cache.mkdir(parents=True, exist_ok=True)
    apt = PrivateApt(cache / "apt")
    try:
        apt.open_suite_with("systemd", OOMD_VERSION_MIN)
        debs = [deb.path for deb in apt.download_closure("systemd-oomd")]
    except AptError as error:
        raise Missing(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="others-", dir=cache) as made:
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", deb, made], check=True)
        new = Path(made, "new")
        for name in ("systemd", "x86_64-linux-gnu"):
            shutil.copytree(Path(made, "usr/lib", name), new / "opt/newer/usr/lib" / name, symlinks=True)
        subprocess.run(["apt-get", "-q", "download", "nohang"], cwd=made, check=True)
        subprocess.run(["dpkg-deb", "-x", next(Path(made).glob("nohang_*.deb")), new], check=True)
        new.rename(others)
    return others


def fill(tree: Path, kernel: Path, extras: Iterable[Path]) -> None:
    """Put into `tree` what the machine's root file system is to have."""
    for name in ("proc", "sys", "dev", "run", "tmp", "etc", "var/lib", "root", "usr"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    copy(files_of(installed_closure()), tree)
    own = [
        CHECKOUT / "ckpt",
        CHECKOUT / GUEST,
        CHECKOUT / "libexec",
        Path("/opt/ckpt/criu"),
        Path("/opt/ckpt/libexec"),
    ]
    own += [path for path in (CHECKOUT / ".venv").iterdir() if path.name != "lib"]
    packages = next((CHECKOUT / ".venv/lib").glob("python3*/site-packages"))
    own += [path for path in packages.iterdir() if TOOLS_NOT_NEEDED.match(path.name) is None]
    copy((each for path in own for each in (path, *path.rglob("*"))), tree)
    (version,) = os.listdir(kernel / "lib/modules")
    modules = tree / "lib/modules" / version
    for name in MODULES:
        source = kernel / "lib/modules" / version / name
        if source.is_dir():
            shutil.copytree(source, modules / name, dirs_exist_ok=True)
    for source in (kernel / "lib/modules" / version).glob("modules.*"):
        shutil.copy2(source, modules)
    subprocess.run(["depmod", "-b", tree, version], check=True)
    for extra in extras:
        shutil.copytree(extra, tree, symlinks=True, dirs_exist_ok=True)
    (tree / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nsystemd-oom:x:990:990::/:/usr/sbin/nologin\n"
    )
    (tree / "etc/group").write_text("root:x:0:\nsystemd-oom:x:990:\n")
    init = tree / "ckpt-init-vm"
    init.write_text(
        INIT.format(python=CHECKOUT / ".venv/bin/python", guest=CHECKOUT / GUEST, checkout=CHECKOUT)
    )
    init.chmod(0o755)


INIT = """\
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
cd {checkout}
{python} {guest} $(cat /ckpt-scenarios)
echo o >/proc/sysrq-trigger
sleep 60
"""


def installed_closure() -> list[str]:
    """The installed packages that PACKAGES and every Debian need."""
    essential = [
        line.split()[0]
        for line in output("dpkg-query", "-W", "-f", "${Package} ${Essential} ${Priority}\n").splitlines()
        if line.endswith(" required") or " yes " in line
    ]
    kinds = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    listed = output("apt-cache", "depends", "--recurse", "--installed", *kinds, *PACKAGES, *essential)
    names = {line.strip() for line in listed.splitlines() if re.match(r"^[a-z0-9]", line)}
    installed = output("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n").splitlines()
    return sorted(names & {line.split()[0] for line in installed if line.split()[1].startswith("ii")})


def files_of(packages: Iterable[str]) -> Iterable[Path]:
    """The files of these packages on this host."""
    for line in output("dpkg-query", "-L", *packages).splitlines():
        if line.startswith("/") and line != "/." and NOT_NEEDED.search(line) is None:
            yield Path(line)
    # Made at the installation, and in no package's list.
    yield from (Path("/etc/ld.so.cache"), Path("/etc/alternatives"), *Path("/etc/alternatives").iterdir())
    yield from Path("/usr/lib/python3.11").rglob("__pycache__/*.pyc")


def copy(files: Iterable[Path], tree: Path) -> None:
    """Put the files where they are into the tree; a directory without what is in it."""
    for path in files:
        if not path.is_symlink() and not path.exists():
            continue
        # /bin/sh of a list is /usr/bin/sh of the file system.
        place = Path(os.path.realpath(path.parent)) / path.name
        target = tree / str(place).lstrip("/")
        if path.is_symlink():
            if not target.is_symlink() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(os.readlink(path))
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def boot(kernel: Path, image: Path, options: argparse.Namespace) -> int:
    """Run the machine to its end, its console on our standard output; gives the exit code."""
    words = [
        *(
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            options.memory,
        ),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(kernel), "-drive", f"file={image},format=raw,if=none,id=root,cache=unsafe"),
        *("-device", "nvme,drive=root,serial=root"),
        "-append",
        "root=/dev/nvme0n1 rw console=ttyS0 quiet panic=-1 cgroup_no_v1=all psi=1 init=/ckpt-init-vm mitigations=off",
    ]
    said = ""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as qemu:
        ends = time.monotonic() + options.timeout
        assert qemu.stdout is not None
        try:
            for line in qemu.stdout:
                print(line, end="", flush=True)
                said += line
                if time.monotonic() > ends:
                    raise Missing(f"the machine did not end within {options.timeout:g} s")
        finally:
            qemu.kill()
    verdict = VERDICT.search(said)
    return 0 if verdict is not None and verdict[1] == "passed" else 1


def output(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
