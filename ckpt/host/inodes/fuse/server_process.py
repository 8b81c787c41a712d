"""The file system's two processes. Both answer the kernel; each starts the other one anew when that dies.

Started by view.py as `python -I -S -c …`; see there. They hold the same /dev/fuse and the same files, and remember
nothing. What a process had read and not answered when it died, the kernel gives again to the other one.

Rules:
- Both end when the kernel says that the file system is gone: the last task of its mount namespace has ended.
- Until the controller has the namespace, its end is theirs.
- Only what `-I -S` offers is imported.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from typing import Final, NoReturn, TypedDict

from ckpt.host import linux
from ckpt.host.inodes import calls
from ckpt.host.inodes.fuse import wire
from ckpt.host.inodes.fuse.answering import Answers, Shown
from ckpt.host.inodes.fuse.wire import Opcode

NAME: Final = "ckpt-fuse"
FILESYSTEM: Final = "fuse.ckpt-inodes"
"""What mountinfo shows as its type."""

READY, FAILED = b"ready", b"failed"
MESSAGE_BYTES_MAX: Final = 4096

_MS_SLAVE: Final = 1 << 19
_MS_REMOUNT: Final = 0x20
_OPTIONS: Final = "fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
_TOO_OLD: Final = "FUSE of this kernel has no passthrough, which came with Linux 6.9"
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_MOUNTED: Final = b"mounted"
_MOUNT_FLAGS: Final = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC


class FileToShow(TypedDict):
    """A file as the controller found it, the number to show it under, and the paths that lead to it."""

    device: int
    inode: int
    number: int
    paths: list[str]


def main(arguments: list[str]) -> NoReturn:
    """Serve one file system.

    Arguments: the numbers of a descriptor with a JSON list of FileToShow, and of the controller's socket; an empty
    directory to mount at.
    """
    config, control = int(arguments[0]), socket.socket(fileno=int(arguments[1]))
    if os.fork():
        os._exit(0)  # the controller needs not stay to reap
    for each in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGPIPE,
        signal.SIGTSTP,
        signal.SIGCHLD,  # nobody waits for a fork that has ended
    ):
        signal.signal(each, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o077)
    _show_as(NAME)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    try:
        with os.fdopen(config, "rb") as stream:
            files: list[FileToShow] = json.load(stream)
        server = _Server(files, arguments[2])
        server.begin(control)
    except OSError as error:
        with suppress(OSError):
            where = f" ({error.filename})" if error.filename else ""
            reason = f"{error.strerror}{where}".encode(errors="replace")
            control.send(b"%s %s" % (FAILED, reason[: MESSAGE_BYTES_MAX - len(FAILED) - 1]))
        os._exit(1)
    control.close()
    server.run()


class _Server:
    """Either of the two processes."""

    def __init__(self, files: list[FileToShow], place: str) -> None:
        self._files = files
        self._place = place
        shown = [Shown(_opened(file, file["paths"][0], _READ), file["number"]) for file in files]
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._answers = Answers(self._fuse, shown)
        self._other: socket.socket | None = None

    def begin(self, control: socket.socket) -> None:
        """Mount it in a mount namespace of its own, and give that to the controller when both processes serve.

        Raises:
            OSError: it cannot be mounted, or the files cannot be shown.
        """
        mounter, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            mounter.close()
            self._mount(theirs)
        theirs.close()
        with mounter:
            _expect(mounter)
            # INIT waits since the mount, and must be answered before the kernel takes backing files.
            self._answer_one(Opcode.INIT)
            if not self._answers.is_agreed:
                raise OSError(errno.ENOTSUP, _TOO_OLD)
            self._answers.register()
            poll = select.poll()
            poll.register(self._fuse, select.POLLIN)
            poll.register(mounter, select.POLLIN)
            while mounter.fileno() not in (ready := [fd for fd, _ in poll.poll()]):
                if self._fuse in ready:
                    self._answer_all()
            namespace = _expect(mounter)
        if self._fork_other():
            control.close()
            os.close(namespace)
            self.run()
        socket.send_fds(control, [READY], [namespace])
        os.close(namespace)

    def run(self) -> NoReturn:
        """Answer until the file system is gone."""
        while True:
            poll = select.poll()
            poll.register(self._fuse, select.POLLIN)
            assert self._other is not None
            poll.register(self._other, select.POLLIN)
            other = self._other.fileno()
            while True:
                ready = [fd for fd, _ in poll.poll()]
                if self._fuse in ready:
                    self._answer_all()
                if other in ready:
                    # Nobody ever writes to it: the other process is no more.
                    break
            self._fork_other()
            with suppress(OSError):
                os.write(self._fuse, wire.resend())

    def _fork_other(self) -> bool:
        """Start the other process; True in it."""
        ours, theirs = socket.socketpair()
        former, self._other = self._other, None
        if former is not None:
            former.close()
        is_new = os.fork() == 0
        (ours if is_new else theirs).close()
        self._other = theirs if is_new else ours
        return is_new

    def _answer_all(self) -> None:
        while (packet := self._next()) is not None:
            self._answers.answer(packet)

    def _answer_one(self, wanted: Opcode) -> None:
        poll = select.poll()
        poll.register(self._fuse, select.POLLIN)
        while poll.poll():
            packet = self._next()
            if packet is not None and self._answers.answer(packet) == wanted:
                return

    def _next(self) -> bytes | None:
        """The next request; None if there is none now."""
        try:
            return os.read(self._fuse, wire.REQUEST_BYTES_MAX)
        except OSError as error:
            if error.errno == errno.ENODEV:
                os._exit(0)
            # Somebody else has taken it, or it was interrupted meanwhile.
            if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                return None
            raise

    # ---------------------------------------------------------- in a process that only makes the namespace

    def _mount(self, report: socket.socket) -> NoReturn:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            # What the host unmounts goes here, too; nothing that is mounted here goes to the host.
            linux.mount("none", "/", flags=linux.MS_REC | _MS_SLAVE)
            options = _OPTIONS.format(fd=self._fuse)
            linux.mount("ckpt-inodes", self._place, FILESYSTEM, options=options)
            report.send(_MOUNTED)
            for index, file in enumerate(self._files):
                for path in file["paths"]:
                    self._bind(f"{self._place}/{wire.ROOT + 1 + index}", file, path)
            linux.umount(self._place, flags=linux.MNT_DETACH)
            namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            socket.send_fds(report, [READY], [namespace])
        except OSError as error:
            with suppress(OSError):
                report.send(b"%d %s" % (error.errno or errno.EIO, str(error.filename or "").encode()))
        finally:
            os._exit(0)

    def _bind(self, source: str, file: FileToShow, path: str) -> None:
        target = _opened(file, path, os.O_PATH)
        try:
            place = f"/proc/self/fd/{target}"
            flags = os.fstatvfs(target).f_flag & _MOUNT_FLAGS
            linux.mount(source, place, flags=linux.MS_BIND)
        finally:
            os.close(target)
        if flags:
            linux.mount("none", path, flags=linux.MS_BIND | _MS_REMOUNT | flags)


def _expect(report: socket.socket) -> int:
    """The mounter's next word: -1, or the namespace at its end.

    Raises:
        OSError: what it failed with.
    """
    word, fds, _, _ = socket.recv_fds(report, MESSAGE_BYTES_MAX, 1)
    if word == _MOUNTED:
        return -1
    if word == READY and fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    number, _, path = word.partition(b" ")
    code = int(number) if number.isdigit() else errno.EIO
    raise OSError(code, os.strerror(code), os.fsdecode(path) or None)


def _opened(file: FileToShow, path: str, flags: int) -> int:
    """The very file that the controller saw.

    Raises:
        OSError: ESTALE: it is another one now.
    """
    fd = calls.open_without_links(path, flags | os.O_NOFOLLOW)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (file["device"], file["inode"]):
        os.close(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    return fd


def _show_as(name: str) -> None:
    """Set what ps(1) shows as the name, and ask the OOM killer to take others first."""
    for path, value in (("/proc/self/comm", name), ("/proc/self/oom_score_adj", "-900")):
        # Lowering the score needs CAP_SYS_RESOURCE; without it these are as safe as any small process.
        with suppress(OSError), open(path, "w", encoding="ascii") as stream:
            stream.write(value)
