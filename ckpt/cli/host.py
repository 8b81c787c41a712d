"""`ckpt host`: what is done to other hosts, so that workloads can go there."""

from __future__ import annotations

from typing import Final

from ckpt.cli.lazy import make_group

COMMANDS: Final = {
    "setup": ("ckpt.cli.host_setup", "Install ckpt and CRIU on another host, over SSH."),
}

command = make_group(
    "host",
    table=COMMANDS,
    example="ckpt host setup root@web2",
    help="Make other hosts ready for workloads of this one.",
)
