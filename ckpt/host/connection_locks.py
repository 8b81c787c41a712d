"""The locks on connections: those that CRIU leaves of what it has killed, and those that a restore needs.

They keep the other ends from seeing a connection go until it is restored, and a restore of the same images removes them.
One of another checkpoint does not: its connections would be silent for ever. And a dump that left the workload running
has left none: then what CRIU sends while it restores one end is answered with a reset, as the other end is not there yet.

Rules:
- A lock is removed when something else takes the place of what it was for, and not before.
- A lock that is made for a restore has the name and the form of CRIU's own, so that CRIU removes it when the tree goes on.
Source: criu/netfilter.c (nftables_init_connection_lock); soccr/soccr.c; host/criu/netlock.py.
"""

from __future__ import annotations

import ipaddress
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ckpt.errors import CkptError
from ckpt.host.criu import netlock
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.pstree import read_inventory
from ckpt.host.jobs import JobRecord

_TCP: Final = 6
_TIMEOUT_S: Final = 10.0
_TABLE: Final = """\
create table inet {name}
add set inet {name} conns4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
add set inet {name} conns6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
"""
_CHAIN: Final = """\
add chain inet {name} {hook} {{ type filter hook {hook} priority 0; }}
add rule inet {name} {hook} meta mark 0xC114 accept
add rule inet {name} {hook} ip saddr . tcp sport . ip daddr . tcp dport @conns4 drop
add rule inet {name} {hook} ip6 saddr . tcp sport . ip6 daddr . tcp dport @conns6 drop
"""
_CONNECTION: Final = (
    "add element inet {{name}} conns{version} {{{{ {source} . {sport} . {target} . {dport} }}}}\n"
)


def lock_of(images: str) -> str:
    """The name of the lock of the dump in this directory."""
    return netlock.table_of(read_inventory(Path(images)).run_id)


def lock(images: str) -> str:
    """Lock the connections of these images in this network namespace, unless they are; gives the dump's run id.

    "" where there is nothing to lock, where they are locked, or where the program nft is missing: then as ever.

    Raises:
        ObjectCorrupt, OsRefused: the images cannot be read, or the kernel's tables not listed.
    """
    connections = "".join(_connections(Path(images)))
    run_id = read_inventory(Path(images)).run_id
    name = netlock.table_of(run_id)
    if not (connections and run_id) or name in netlock.list_tables():
        return ""
    rules = "".join((_TABLE, *(_CHAIN.replace("{hook}", hook) for hook in ("output", "input")), connections))
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=rules.format(name=name),
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        return run_id if done.returncode == 0 else ""
    return ""


def unlock(run_id: str) -> None:
    """Remove what lock() made, if CRIU has not; never fails."""
    with suppress(CkptError, ValueError):
        netlock.remove_table(netlock.table_of(run_id))


def _connections(images: Path) -> Iterator[str]:
    """The lines for both directions of each connection; the name of the table is to come."""
    if not (images / "files.img").exists():
        return
    for entry in read_entries(images / "files.img", "FILES", "file_entry"):
        if entry.HasField("isk") and entry.isk.proto == _TCP and entry.isk.dst_port:
            here, there = _address(entry.isk.src_addr), _address(entry.isk.dst_addr)
            if here is None or there is None or here.version != there.version:
                continue
            ports = entry.isk.src_port, entry.isk.dst_port
            for source, target, sport, dport in ((here, there, *ports), (there, here, *ports[::-1])):
                yield _CONNECTION.format(
                    version=here.version, source=source, target=target, sport=sport, dport=dport
                )


def _address(words: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    packed = struct.pack(f"<{len(words)}I", *words)
    if len(packed) not in {4, 16}:
        return None
    found = ipaddress.ip_address(packed)
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def release(record: JobRecord | None) -> None:
    """Remove what is left of the locks that were noted when the job was stopped; never fails."""
    for name in record.connection_locks if record is not None else ():
        with suppress(CkptError, ValueError):
            netlock.remove_table(name)
