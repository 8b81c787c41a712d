"""All rules over a workload that runs, in the order in which they are told.

Rule: a family of rules is one module with its rows in RULES; a rule is in no two.
"""

from __future__ import annotations

from typing import Final

from ckpt.host.preflight import (
    anonymous_rules,
    cgroup_rules,
    descriptor_rules,
    device_rules,
    epoll_rules,
    file_rules,
    kinship_rules,
    limit_rules,
    loss_rules,
    memory_rules,
    namespace_rules,
    netlink_rules,
    network_rules,
    pipe_rules,
    process_rules,
    shared_socket_rules,
    sharing_rules,
    socket_option_rules,
    socket_rules,
    terminal_rules,
    unix_rules,
    watch_rules,
)
from ckpt.host.preflight.rule import Rule

RULES: Final[tuple[Rule, ...]] = (
    *process_rules.RULES,
    *kinship_rules.RULES,
    *namespace_rules.RULES,
    *cgroup_rules.RULES,
    *limit_rules.RULES,
    *anonymous_rules.RULES,
    *descriptor_rules.RULES,
    *epoll_rules.RULES,
    *device_rules.RULES,
    *watch_rules.RULES,
    *memory_rules.RULES,
    *sharing_rules.RULES,
    *file_rules.RULES,
    *socket_rules.RULES,
    *unix_rules.RULES,
    *netlink_rules.RULES,
    *network_rules.RULES,
    *socket_option_rules.RULES,
    *shared_socket_rules.RULES,
    *pipe_rules.RULES,
    *terminal_rules.RULES,
    *loss_rules.RULES,
)
