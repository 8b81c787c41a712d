"""Rules over what a job has made in the network of its own, and does not get back.

Source: ip-link(8); linux/netfilter/nf_tables.h; docs/network.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ckpt.errors import CkptError
from ckpt.host.criu.netlock import count_tables
from ckpt.host.network.namespace import namespace_of
from ckpt.host.network.reading import read_network
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import Found, Rule
from ckpt.model.findings import Severity


def _lost(facts: Facts) -> Iterator[Found]:
    for tree in facts.snapshot.trees:
        if not tree.owns("net"):
            continue
        try:
            read = read_network(tree.root)
            if read is None:
                continue
            namespace = namespace_of(tree.root)
            try:
                tables = count_tables(namespace)
            finally:
                os.close(namespace)
        except CkptError as error:
            raise OSError(error.message) from error
        lost = [*read.lost, *([f"{tables} table(s) of nftables"] if tables else [])]
        if lost:
            yield Found(
                pid=tree.root,
                subject=str(read.network),
                message=f"its network has {', '.join(lost)} that a restore does not make again",
            )


RULES: Final = (
    Rule(
        name="network-extras",
        severity=Severity.WARNING,
        title="interfaces and nftables rules that a job made in the network of its own",
        effect="They are not there after the restore; its interface, addresses and unicast routes are.",
        remedy="Let the program make them anew after the restore.",
        source="ip-link(8); linux/netfilter/nf_tables.h; seen",
        find=_lost,
    ),
)
