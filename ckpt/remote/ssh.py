"""The door to SSH: one connection to another host, and programs that run there.

Rules:
- A host key that is not known, or another one than is known, ends it: keys are never learnt, and no question is
  asked. Known are those of `--known-hosts`, else of ~/.ssh/config, else ~/.ssh/known_hosts and the system's.
- Nobody is asked for a password: keys, and the user's agent, or nothing.
- Foreign exceptions end here.
- AES-GCM is asked for first: one pass encrypts and authenticates, where the CPU has instructions for it.
Source: RFC 4251 to 4254, RFC 5647; tcp(7); paramiko.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import socket
import tempfile
from types import TracebackType
from typing import Any, Final, Self, cast

import paramiko

from ckpt.errors import HostKeyRefused, LoginRefused, PeerFailed, RemoteError, Unreachable
from ckpt.remote.address import Address
from ckpt.remote.known_hosts import usable_lines
from ckpt.remote.packets import FastPacketizer
from ckpt.remote.tcp import watch
from ckpt.remote.way import CONNECT_TIMEOUT_S, SshOptions, Way, find_way, said

# What went wrong is told once, by our own errors.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


_WINDOW_BYTES: Final = 8 << 20
"""What the other side may send before it is read here."""


class RunningProgram:
    """A program on the other host; its standard input and output are a stream of bytes."""

    def __init__(self, channel: paramiko.Channel, packets: FastPacketizer, host: str) -> None:
        self._channel = channel
        self._packets = packets
        self._host = host

    def read(self, count: int, timeout_s: float) -> bytes:
        """At most `count` bytes of its output, at least one unless it ended.

        Raises:
            PeerFailed: nothing came in time, or the connection broke.
        """
        try:
            self._channel.settimeout(timeout_s)
            return self._channel.recv(count)
        except TimeoutError:
            raise PeerFailed(host=self._host, reason=f"it said nothing for {timeout_s:g} s") from None
        except (OSError, paramiko.SSHException) as error:
            raise PeerFailed(host=self._host, reason=said(error)) from None

    @property
    def has_some(self) -> bool:
        """Whether some of its output is here."""
        return self._channel.recv_ready()

    def read_errors(self, count: int) -> bytes:
        """At most `count` bytes of its standard error, none at its end; waits as long as it takes."""
        try:
            return self._channel.recv_stderr(count)
        except (OSError, paramiko.SSHException):
            return b""

    def write(self, content: bytes | memoryview, timeout_s: float) -> None:
        """Send all of this to its input.

        Raises:
            PeerFailed: it does not take it in time, or the connection broke.
        """
        try:
            self._channel.settimeout(timeout_s)
            with self._packets.batch():
                self._send(memoryview(content))
        except TimeoutError:
            raise PeerFailed(host=self._host, reason=f"it took nothing for {timeout_s:g} s") from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise PeerFailed(host=self._host, reason=said(error)) from None

    def _send(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self._channel.send(rest) :]  # type: ignore[arg-type]  # anything with slices will do
            # Nothing may be held back while the other side is waited for.
            if not self._channel.out_window_size:
                self._packets.flush()

    def exit_status(self, timeout_s: float) -> int | None:
        """What it ended with; None if that did not come in time."""
        if self._channel.status_event.wait(timeout_s):
            return self._channel.exit_status
        return None

    def close(self) -> None:
        """Let go of it: it finds its input closed."""
        self._channel.close()


class SshConnection:
    """A connection to a host that proved who it is; a context manager that closes it."""

    def __init__(self, address: Address, options: SshOptions) -> None:
        """Connect and log in.

        Raises:
            Unreachable: no connection, or no SSH there.
            HostKeyRefused: its key is not known, or another one is.
            LoginRefused: it lets nobody in with our keys.
            Usage: a file that the user named cannot be read.
        """
        self.host = str(address)
        way = find_way(address, options)
        self.user = way.user
        self._client = paramiko.SSHClient()
        try:
            self._load_known_hosts(way)
            self._client.set_missing_host_key_policy(_Strict(self.host))
            self._connect(way)
        except BaseException:
            self._client.close()
            raise

    def run(self, command: str) -> RunningProgram:
        """Start a command for the other host's login shell.

        Raises:
            PeerFailed: it cannot be started.
        """
        transport = self._client.get_transport()
        try:
            if transport is None:
                raise paramiko.SSHException("the connection is closed")  # noqa: TRY301 - told as the others
            channel = transport.open_session(window_size=_WINDOW_BYTES, timeout=CONNECT_TIMEOUT_S)
            channel.exec_command(command)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise PeerFailed(host=self.host, reason=f"no program can be started ({said(error)})") from None
        return RunningProgram(channel, cast(FastPacketizer, transport.packetizer), self.host)

    @property
    def address(self) -> str:
        """Where the host was reached, in numbers.

        Raises:
            Unreachable: it is no more.
        """
        return str(self._place()[0])

    def dial(self, port: int, timeout_s: float) -> socket.socket:
        """A TCP connection to another port of the host, where SSH reached it.

        Raises:
            Unreachable: there is none.
        """
        host, _, *scope = self._place()
        connection = socket.socket(socket.AF_INET6 if scope else socket.AF_INET)
        try:
            connection.settimeout(timeout_s)
            connection.connect((host, port, *scope))
            watch(connection)
        except OSError as error:
            connection.close()
            reason = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else said(error)
            raise Unreachable(host=self.host, reason=f"port {port}: {reason}") from None
        return connection

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self) -> tuple[Any, ...]:
        """The other end, as the address family has it: IPv6 with two numbers more."""
        transport = self._client.get_transport()
        try:
            if transport is None:
                raise OSError("the connection is closed")  # noqa: TRY301 - told as the others
            return tuple(transport.getpeername())
        except OSError as error:
            raise Unreachable(host=self.host, reason=said(error)) from None

    def _load_known_hosts(self, way: Way) -> None:
        try:
            with tempfile.NamedTemporaryFile("w", prefix="ckpt-", encoding="utf-8") as usable:
                usable.write("".join(f"{line}\n" for line in usable_lines(way.known_hosts)))
                usable.flush()
                self._client.load_system_host_keys(usable.name)
        except (OSError, paramiko.SSHException) as error:
            where = getattr(error, "filename", None) or ", ".join(way.known_hosts)
            raise HostKeyRefused(
                host=self.host, reason=f"the known hosts in {where} cannot be read ({said(error)})"
            ) from None

    def _connect(self, way: Way) -> None:
        try:
            self._client.connect(
                way.host,
                port=way.port,
                username=way.user,
                key_filename=list(way.identities) or None,  # type: ignore[arg-type]  # a list is allowed
                allow_agent=not way.only_identities,
                look_for_keys=not way.identities,
                timeout=way.timeout_s,
                banner_timeout=way.timeout_s,
                auth_timeout=3 * way.timeout_s,
                channel_timeout=way.timeout_s,
                transport_factory=_new_transport,
            )
        except RemoteError:
            raise
        except paramiko.BadHostKeyException as error:
            raise HostKeyRefused(
                host=self.host,
                reason=f"it shows the key {_fingerprint(error.key)}, and {_fingerprint(error.expected_key)} is known: "
                "it is another host, or somebody is in between",
                remedy=f"If the host really has a new key: ssh-keygen -R '{way.name}', and then add the new one.",
            ) from None
        except paramiko.PasswordRequiredException:
            raise LoginRefused(
                host=self.host,
                reason="the key has a passphrase, and nobody can be asked for it",
                remedy="Give it to your agent: ssh-add.",
            ) from None
        except paramiko.AuthenticationException:
            raise LoginRefused(
                host=self.host,
                reason=f"user {way.user}, with {way.shown_keys}",
                remedy="Name a key with --identity, or let ssh-copy-id bring yours there.",
            ) from None
        except paramiko.ssh_exception.NoValidConnectionsError as error:
            reasons = {said(each) for each in error.errors.values()}
            raise _unreachable(self.host, way, "; ".join(sorted(reasons))) from None
        except TimeoutError:
            raise _unreachable(self.host, way, f"no answer within {way.timeout_s:g} s") from None
        except socket.gaierror as error:
            raise _unreachable(self.host, way, error.strerror or "no such name") from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _unreachable(self.host, way, said(error)) from None


def _new_transport(sock: Any, **options: Any) -> paramiko.Transport:
    """One for many bytes, that notices when the other host is gone."""
    transport = paramiko.Transport(sock, packetizer_class=FastPacketizer, **options)
    security = transport.get_security_options()
    # A stable sort: the others stay in paramiko's order, for servers without it.
    security.ciphers = sorted(security.ciphers, key=lambda cipher: "gcm" not in cipher)
    watch(sock)
    return transport


class _Strict(paramiko.MissingHostKeyPolicy):
    """Refuses every key that is not known."""

    def __init__(self, host: str) -> None:
        self._host = host

    def missing_host_key(self, _client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise HostKeyRefused(
            host=self._host,
            reason=f"its key {_fingerprint(key)} is not among the known ones",
            remedy="Compare it with what 'ssh-keygen -lf' says there of /etc/ssh/ssh_host_*_key.pub; if it is that, "
            f"add a line to your known_hosts: {hostname} {key.get_name()} {key.get_base64()}",
        )


def _fingerprint(key: paramiko.PKey) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _unreachable(host: str, way: Way, reason: str) -> Unreachable:
    return Unreachable(
        host=host,
        reason=f"{way.host}, port {way.port}: {reason}",
        remedy=f"See whether sshd runs there, and what 'ssh -v -p {way.port} {way.user}@{way.host}' says.",
    )
