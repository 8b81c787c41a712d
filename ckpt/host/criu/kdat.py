"""Let CRIU keep its cache of kernel features where /run is not a tmpfs.

CRIU probes the kernel at each start (about 25 ms) unless it finds /run/criu.kdat, which it writes only to a
tmpfs, so that it is gone after a boot. Where /run is on disk, CRIU can be given a mount namespace of its own
with a tmpfs at /run: everything that the host has there is bound into it, and the cache is put beside it.

Rules:
  * The host's mounts and the host's /run are not touched.
  * CRIU must not be in another mount namespace than tasks that live in the host's: it would take theirs for
    a foreign one, and its dump could not be restored. A dump may use this only for tasks that have a mount
    namespace of their own; a restore also for others, if it joins the host's ("mnt", restore_join()).
  * The kept copy names the boot and the CRIU that it belongs to; anything else is not even opened.
Source: criu/kerndat.c (kerndat_try_load_cache, kerndat_save_cache); decision 0003.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host.criu.launch import Child, Launch, Launcher
from ckpt.host.criu.request import JoinNamespace

_RUN: Final = Path("/run")
_KDAT: Final = "criu.kdat"
_PROBE_TIMEOUT_S: Final = 30.0
_TMPFS_OPTIONS: Final = b"mode=755,size=1m"

_CLONE_NEWNS: Final = 0x00020000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18

_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_useful() -> bool:
    """Whether CRIU cannot keep its cache here, and a namespace for it would not disturb the host.

    A shared root would carry our mounts to the host (mount_namespaces(7)), and making it private would hide
    from CRIU whose peer a mount is.
    """
    run_is_mount_point = False
    root_is_shared = True
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[4] == str(_RUN):
            run_is_mount_point = True
        if fields[4] == "/":
            root_is_shared = any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return not run_is_mount_point and not root_is_shared


def restore_join() -> JoinNamespace:
    """What a restore that uses this for tasks of the host's mount namespace must join."""
    return JoinNamespace(kind="mnt", path=Path(f"/proc/{os.getpid()}/ns/mnt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCache:
    """Keeps CRIU's cache as a file in `directory`, which only root may write to."""

    directory: Path

    def launcher(self, criu: Path, inner: Launcher) -> Launcher:
        """A launcher that starts CRIU, as `inner` does, in a namespace where it finds its cache.

        The launcher raises OsRefused where the namespace cannot be made.
        """
        kept = self.directory / f"{_KDAT}.{_identity(criu)}"

        def launch(what: Launch) -> Child:
            return _in_namespace(criu, kept, lambda: inner(what))

        return launch


def _identity(criu: Path) -> str:
    """This boot and this program; the wrapper script's neighbour is the program itself (scripts/setup)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    program = criu.resolve().parent.parent / "lib" / "criu.bin"
    status = os.stat(program if program.is_file() else criu)
    return f"{boot}.{status.st_dev:x}-{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _in_namespace(criu: Path, kept: Path, start: Callable[[], Child]) -> Child:
    """Call `start` in a thread of its own: only a thread can leave the mount namespace of its process."""
    children: list[Child] = []
    errors: list[BaseException] = []

    def launch() -> None:
        try:
            _enter()
            _fill(criu, kept)
            children.append(start())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=launch, name="launch-criu")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return children[0]


def _fill(criu: Path, kept: Path) -> None:
    """Put the cache into this namespace; the first time of a boot, let CRIU make it and keep a copy."""
    inside = _RUN / _KDAT
    with suppress(OSError):
        inside.write_bytes(kept.read_bytes())
        return
    # CRIU writes its cache at the end of any probing. If it cannot, it just takes its time again later.
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [str(criu), "--no-default-config", "check", "--feature", "timens"],
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
        fresh = kept.with_name(f".{kept.name}.{os.getpid()}")
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(inside.read_bytes())
        fresh.replace(kept)
        _remove_older(kept)


def _remove_older(kept: Path) -> None:
    """Remove the copies of other boots: each boot would leave one more."""
    boot = kept.name.split(".")[2]
    for each in kept.parent.glob(f"{_KDAT}.*"):
        if each.name.split(".")[2] != boot:
            each.unlink(missing_ok=True)


def _enter() -> None:
    # It takes its own copy of root and working directory along (CLONE_FS): no other thread notices.
    _check(_libc.unshare(_CLONE_NEWNS), "unshare", "the mount namespace")
    _mount(None, Path("/"), None, _MS_REC | _MS_PRIVATE)
    # The tmpfs will cover the host's /run: what is bound into it is reached through this descriptor.
    host_run = os.open(_RUN, os.O_PATH | os.O_DIRECTORY)
    try:
        _mount(b"tmpfs", _RUN, b"tmpfs", 0, _TMPFS_OPTIONS)
        with os.scandir(f"/proc/self/fd/{host_run}") as entries:
            for entry in entries:
                if not entry.name.startswith(_KDAT):
                    _show(entry, _RUN / entry.name)
    finally:
        os.close(host_run)


def _show(entry: os.DirEntry[str], place: Path) -> None:
    if entry.is_symlink():
        place.symlink_to(os.readlink(entry.path))
        return
    if entry.is_dir():
        place.mkdir()
    else:
        place.touch()
    _mount(os.fsencode(entry.path), place, None, _MS_BIND | _MS_REC)


def _mount(
    source: bytes | None, place: Path, kind: bytes | None, flags: int, options: bytes | None = None
) -> None:
    _check(_libc.mount(source, os.fsencode(place), kind, flags, options), "mount", str(place))


def _check(result: int, operation: str, subject: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OsRefused(operation=operation, subject=subject, reason=os.strerror(number))
