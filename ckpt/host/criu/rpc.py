"""From our requests to CRIU's options.

Rule: what the RPC cannot say goes through the config file that it names (CRIU evaluates it last).
Source: images/rpc.proto; criu/cr-service.c (setup_opts_from_req); criu/config.c (parse_statement).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ckpt.errors import OsRefused
from ckpt.host.criu.pb import rpc
from ckpt.host.criu.request import CgroupMode, DumpRequest, LogLevel, RestoreRequest

_CGROUP_MODES: Final = {
    CgroupMode.IGNORE: rpc.IGNORE,
    CgroupMode.NONE: rpc.CG_NONE,
    CgroupMode.PROPS: rpc.PROPS,
    CgroupMode.SOFT: rpc.SOFT,
    CgroupMode.FULL: rpc.FULL,
    CgroupMode.STRICT: rpc.STRICT,
}
_LOG_LEVELS: Final = {LogLevel.ERROR: 1, LogLevel.WARNING: 2, LogLevel.INFO: 3, LogLevel.DEBUG: 4}


def dump_message(request: DumpRequest) -> Any:
    """The RPC message of a dump; writes the config file that it names.

    Raises:
        OsRefused: the config file cannot be written.
    """
    # With lazy pages the RPC takes no socket (criu/cr-service.c, setup_opts_from_req); a config file does.
    serving = () if request.lazy_socket is None else (f"ps-socket {request.lazy_socket}",)
    message = _message(rpc.DUMP, request, network=True, more=serving)
    options = message.opts
    options.lazy_pages = request.lazy_socket is not None
    options.pid = request.pid
    options.leave_running = request.leave_running
    options.link_remap = request.link_remap
    options.ghost_limit = request.ghost_limit_bytes
    options.timeout = request.seize_timeout_s
    if request.freeze_cgroup is not None:
        options.freeze_cgroup = str(request.freeze_cgroup)
    return message


def restore_message(request: RestoreRequest) -> Any:
    """The RPC message of a restore; writes the config file that it names.

    Raises:
        OsRefused: the config file cannot be written.
    """
    # The way of the network lock is taken from the images (inventory.img).
    message = _message(rpc.RESTORE, request, network=False)
    options = message.opts
    options.rst_sibling = request.sibling
    options.lazy_pages = request.lazy
    if request.root is not None:
        options.root = str(request.root)
    for inherited in request.inherit_fds:
        options.inherit_fd.add(key=inherited.key, fd=inherited.fd)
    for joined in request.join_namespaces:
        options.join_ns.add(ns=joined.kind, ns_file=str(joined.path))
    for root in request.cgroup_roots:
        options.cg_root.add(path=root.path, **({"ctrl": root.controller} if root.controller else {}))
    if request.lsm_profile:
        options.lsm_profile = request.lsm_profile
    return message


def cpuinfo_message(images: Path, *, check: bool) -> Any:
    """The RPC message that writes, or compares with, cpuinfo.img in `images`."""
    message = rpc.criu_req(type=rpc.CPUINFO_CHECK if check else rpc.CPUINFO_DUMP)
    message.opts.images_dir_fd = -1
    message.opts.images_dir = str(images)
    message.opts.log_file = "cpuinfo.log"
    return message


def _message(
    kind: int, request: DumpRequest | RestoreRequest, *, network: bool, more: Sequence[str] = ()
) -> Any:
    message = rpc.criu_req(type=kind)
    options = message.opts
    # A descriptor would be opened as /proc/PID/fd/N by a CRIU that may live in another PID namespace.
    options.images_dir_fd = -1
    options.images_dir = str(request.images)
    options.log_file = request.log.name
    options.log_level = _LOG_LEVELS[request.log_level]
    options.notify_scripts = True
    options.tcp_established = request.tcp_established
    options.tcp_close = request.tcp_close
    options.file_locks = request.file_locks
    options.ext_unix_sk = request.external_unix
    options.shell_job = request.shell_job
    options.manage_cgroups_mode = _CGROUP_MODES[request.cgroup_mode]
    options.external.extend(request.externals)
    if network:
        # CRIU's default wants iptables' programs, which a host of today may lack. And with any lock but SKIP it
        # makes its table for every dump, under the freeze, also where no connection will be locked; it stays
        # behind when the tasks do not go on here (criu/net.c, network_lock, network_unlock).
        options.network_lock = rpc.NFTABLES if request.tcp_established else rpc.SKIP
    lines = list(more)
    if request.work_directory != request.images:
        lines.append(f'work-dir "{request.work_directory}"')
    if lines:
        options.config_file = str(_write_config(request, lines))
    return message


def _write_config(request: DumpRequest | RestoreRequest, lines: Sequence[str]) -> Path:
    path = request.work_directory / f"{request.log.stem}.conf"
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OsRefused(operation="write", subject=str(path), reason=str(error.strerror)) from error
    return path
