"""The way to another host, as the user's options and ~/.ssh/config describe it; nothing is connected yet.

Rule: of ~/.ssh/config count HostName, Port, User, IdentityFile, IdentitiesOnly, UserKnownHostsFile,
GlobalKnownHostsFile, ConnectTimeout. What the user writes on the command line wins.
Source: ssh_config(5).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import paramiko

from ckpt.errors import Usage
from ckpt.remote.address import Address

CONNECT_TIMEOUT_S: Final = 10.0
_PORT: Final = 22
_SYSTEM_KNOWN_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_CONFIG: Final = "~/.ssh/config"
_KNOWN_HOSTS: Final = "~/.ssh/known_hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """What the user says beside the address; "" leaves it to ssh's own rules."""

    identity: str = ""
    known_hosts: str = ""
    config: str = _CONFIG
    connect_timeout_s: float = CONNECT_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where to connect to and with what, after the configuration was read."""

    host: str
    port: int
    user: str
    identities: tuple[str, ...]
    only_identities: bool
    known_hosts: tuple[str, ...]
    timeout_s: float

    @property
    def name(self) -> str:
        """What known_hosts files call the host."""
        return self.host if self.port == _PORT else f"[{self.host}]:{self.port}"

    @property
    def shown_keys(self) -> str:
        """With what a login is tried, for people."""
        keys = ", ".join(self.identities) or "the keys in ~/.ssh"
        return keys if self.only_identities else f"{keys} and those of the agent"


def find_way(address: Address, options: SshOptions) -> Way:
    """Where to connect to and with what.

    Raises:
        Usage: a file that the user named is not there, or the configuration cannot be read.
    """
    config = _config(options.config, address.host)
    known = (options.known_hosts,) if options.known_hosts else _known_hosts(config)
    if options.known_hosts and not os.path.isfile(options.known_hosts):
        raise Usage(problem=f"There is no file {options.known_hosts}, which --known-hosts names.")
    if options.identity and not os.path.isfile(options.identity):
        raise Usage(problem=f"There is no file {options.identity}, which --identity names.")
    named = config.get("identityfile", [])
    identities = [options.identity] if options.identity else [path for path in named if os.path.isfile(path)]
    return Way(
        host=str(config.get("hostname", address.host)),
        port=address.port or _number(config.get("port"), _PORT),
        user=address.user or str(config.get("user") or "") or _own_name(),
        identities=tuple(identities),
        only_identities=config.get("identitiesonly", "no") == "yes",
        known_hosts=known,
        timeout_s=float(_number(config.get("connecttimeout"), 0) or options.connect_timeout_s),
    )


def _config(path: str, host: str) -> Mapping[str, Any]:
    place = Path(path).expanduser()
    try:
        return paramiko.SSHConfig.from_path(str(place)).lookup(host)
    except FileNotFoundError:
        return {}
    # A KeyError: CanonicalizeHostname without CanonicalDomains. An ImportError: Match exec without the package for it.
    except (OSError, UnicodeDecodeError, KeyError, ImportError, paramiko.SSHException) as error:
        raise Usage(problem=f"{place} cannot be read: {said(error)}.") from None


def _known_hosts(config: Mapping[str, Any]) -> tuple[str, ...]:
    own = str(config.get("userknownhostsfile", _KNOWN_HOSTS)).split()
    system = str(config.get("globalknownhostsfile", " ".join(_SYSTEM_KNOWN_HOSTS))).split()
    return tuple(os.path.expanduser(path) for path in (*own, *system) if path not in ("none", os.devnull))


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "root"


def _number(text: object, default: int) -> int:
    return int(str(text)) if str(text or "").isdecimal() else default


def said(error: BaseException) -> str:
    """What a foreign error says, without its period."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error) or type(error).__name__).rstrip(".")
