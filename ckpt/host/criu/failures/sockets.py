"""Sockets, connections and network interfaces."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"In-flight connection on non-listening socket",
        "a unix socket has a connection that was not taken up yet",
        "Try again in a moment.",
    ),
    row(
        r"Can't bind inet socket.*Cannot assign requested address",
        "a network address that the workload is bound to does not exist on this host",
        "Add the address to an interface ('ip addr add'), or restore it where the address is.",
    ),
    row(
        r"Connected TCP socket, consider using --tcp-established",
        "it has an established TCP connection",
        "Pass --tcp-established to keep the connection, or close it first.",
    ),
    row(
        r"Connected TCP socket in image",
        "the checkpoint holds an established TCP connection, and the restore was not told to keep it",
        "Restore with the options of the dump (--tcp-established).",
    ),
    row(
        r"Iptables configuration failed|Locking network failed",
        "the network could not be locked for the dump",
        "Lock with nftables (kernel module nf_tables); iptables' programs are not needed then.",
    ),
    row(
        r"In-flight connection",
        "a listening TCP socket has a connection that the program has not accepted yet",
        "Try again in a moment, when it was accepted.",
    ),
    row(
        r"Unsupported proto 262\b",
        "it uses an MPTCP socket, which cannot be saved (Go programs use them by default)",
        "Start it with GODEBUG=multipathtcp=0, or with plain TCP sockets.",
    ),
    row(
        r"BUG! Unknown socket collected \(family 40\)",
        "it uses an AF_VSOCK socket, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"BUG! Unknown socket collected \(family (?P<family>\d+)\)",
        "it uses a socket of address family {family}, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"Can't dump corked dgram socket",
        "a corked UDP socket holds data that was not sent yet",
        "Try again in a moment.",
    ),
    row(
        r"External socket is used",
        "a unix socket is connected to a process outside the workload",
        "Include that process, or close the connection; a datagram socket may keep it with --external-unix.",
    ),
    row(
        r"Can't dump half of stream unix connection",
        "a unix stream socket is connected to a process outside the workload (D-Bus, X11, a logger)",
        "Include the other process in the workload, or close the connection.",
    ),
    row(
        r"Can't bind inet socket.*Address already in use",
        "a network port of the workload is in use on this host",
        "Stop what listens there ('ss -ltnup' names it), or restore into another network namespace.",
    ),
    row(
        r"Can't bind id .* addr (?P<address>.*?):? Address already in use",
        "the path of the unix socket {address} exists already",
        "Remove that file, if nothing serves it any more.",
    ),
    row(
        r"Can't dump (?P<type>\d+) inet socket",
        "it has an inet socket of type {type}, such as SCTP or DCCP, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"Unsupported socket family: (?P<family>\d+)",
        "it uses a socket of address family {family}, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"External socket found in image",
        "a unix socket of the checkpoint is connected to a process outside of it, and the restore was not told so",
        "Dump it with --external-unix; images that others made: 'criu restore --ext-unix-sk'.",
    ),
    row(
        r"Groups above 32 are not supported|has more than 32 groups",
        "a netlink socket listens to groups above 32, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"The socket has data to read",
        "a netlink socket holds messages that the program has not read yet",
        "Try again in a moment.",
    ),
    row(
        r"Multiple MC membership not supported",
        "a packet socket is in several multicast groups of one interface, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"libsoccr_save\(\) failed|Failed to lock TCP connection",
        "the state of a TCP connection could not be read or locked",
        "Give ckpt CAP_NET_ADMIN; if the connection was just being closed, try again.",
    ),
    row(
        r"couldn't find ifindex for (?P<name>\S+)",
        "the network interface {name}, which a socket of the workload is bound to, does not exist here",
        "Make it ('ip link add'), or restore where it is.",
    ),
    row(
        r"Unsupported link (?P<index>\d+) \(type \d+ kind (?P<kind>[^)]*)\)",
        "the workload's network namespace has an interface of the kind {kind}, which cannot be saved",
        "Remove it, or let the workload use a network namespace that others made.",
    ),
)
