"""What the image files of one tree hold: tasks, descriptors, sockets, pipes, and the memory (ckpt.model.memory).

Every `pid` is as the host saw it, as everywhere in a checkpoint; what is "inside" is as the tasks' own PID namespace
numbers it. Names of kinds and states are ours, names of flags, limits and policies the kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpt.model.memory import AddressSpace
from ckpt.units import ByteCount, Pid


class TaskState(StrEnum):
    """In which state CRIU found a task."""

    ALIVE = "alive"
    STOPPED = "stopped"
    ZOMBIE = "zombie"
    UNKNOWN = "unknown"


class DescriptorKind(StrEnum):
    """What an open file is."""

    FILE = "file"
    PIPE = "pipe"
    FIFO = "fifo"
    INET_SOCKET = "inet socket"
    UNIX_SOCKET = "unix socket"
    NETLINK_SOCKET = "netlink socket"
    PACKET_SOCKET = "packet socket"
    TTY = "tty"
    EVENTFD = "eventfd"
    EPOLL = "epoll"
    SIGNALFD = "signalfd"
    TIMERFD = "timerfd"
    INOTIFY = "inotify"
    FANOTIFY = "fanotify"
    MEMFD = "memfd"
    NAMESPACE = "namespace"
    PIDFD = "pidfd"
    TUN = "tun"
    BPF_MAP = "bpf map"
    EXTERNAL = "external"
    UNKNOWN = "unknown"


class SocketFamily(StrEnum):
    """The family of a socket's addresses."""

    INET = "inet"
    INET6 = "inet6"
    UNIX = "unix"
    NETLINK = "netlink"
    PACKET = "packet"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskThread:
    """One thread; `tid_inside` is its number in the task's own PID namespace, `policy` the scheduler's name."""

    tid_inside: Pid
    name: str
    policy: str
    priority: int
    nice: int
    pending_signals: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimit:
    """A resource limit ("RLIMIT_NOFILE"); None is without limit."""

    name: str
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskNamespace:
    """A namespace of a task: `number` is CRIU's, equal where it is the same; `own` whether CRIU was in another one."""

    kind: str
    number: int
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process. Paths are "" where the images do not say (zombies have none).

    `group` and `session` are numbers inside; `pending_signals` those of the whole process.
    """

    pid: Pid
    pid_inside: Pid
    parent: Pid
    group: Pid
    session: Pid
    name: str
    state: TaskState
    uid: int
    gid: int
    executable: str
    cwd: str
    root: str
    umask: int
    oom_score_adj: int
    threads: tuple[TaskThread, ...]
    pending_signals: tuple[int, ...]
    limits: tuple[ResourceLimit, ...]
    namespaces: tuple[TaskNamespace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """An open file description, which several descriptors may share.

    `number` is CRIU's for it; `access` is "r", "w", "rw", or "" for what is neither read nor written. `position` and
    `size_bytes` are None where it has none, or the images do not say. `object` is the number of the pipe or socket
    behind it, 0 for none; `detail` says in words what else there is to know.
    """

    number: int
    kind: DescriptorKind
    access: str
    flags: tuple[str, ...]
    path: str
    position: int | None
    size_bytes: ByteCount | None
    deleted: bool
    object: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One descriptor of one process."""

    pid: Pid
    fd: int
    close_on_exec: bool
    file: OpenFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A descriptor of a pipe or socket."""

    pid: Pid
    fd: int
    access: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """One socket; `number` is its inode's at the dump, 0 where the images do not say.

    `local` and `remote` are addresses as people write them: "127.0.0.1:80", "[::1]:80", a path, "@name" for an
    abstract name; "" for none. `peer` is the number of the unix socket it is connected to. `outside` tells a unix
    socket that belongs to no task of the tree. The queues are what the images have of them: of UDP they have nothing.
    """

    number: int
    family: SocketFamily
    type: str
    protocol: str
    state: str
    local: str
    remote: str
    peer: int
    outside: bool
    receive_bytes: ByteCount
    send_bytes: ByteCount
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """One pipe, or a FIFO (with its `path`): what was written and not yet read, and how much it can take."""

    number: int
    path: str
    queued_bytes: ByteCount
    capacity_bytes: ByteCount | None
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeContents:
    """All of one tree; `root` is its pid in the checkpoint. Tasks are in the images' order, parents first."""

    root: Pid
    tasks: tuple[Task, ...]
    descriptors: tuple[Descriptor, ...]
    sockets: tuple[Socket, ...]
    pipes: tuple[Pipe, ...]
    memory: tuple[AddressSpace, ...]
