"""Requests that CRIU could not serve are refused when they are made; the others say what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.host.criu.pb import rpc
from ckpt.host.criu.request import CgroupRoot, DumpRequest, InheritFd, JoinNamespace, RestoreRequest
from ckpt.host.criu.rpc import dump_message, restore_message
from ckpt.units import ByteCount, Nanoseconds, Pid

IMAGES = Path("/images")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": Pid(1)},
        {"images": Path("relative")},
        {"work": Path('/a"b')},
        {"work": Path("/a\nb")},
        {"ghost_limit_bytes": ByteCount(2**32)},
        {"timeout": Nanoseconds(0)},
        {"seize_timeout_s": 0},
    ],
)
def test_a_request_that_cannot_be_served_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        DumpRequest(**({"pid": Pid(7), "images": IMAGES} | wrong))  # type: ignore[arg-type]


def test_nothing_is_locked_without_established_connections() -> None:
    plain = dump_message(DumpRequest(pid=Pid(7), images=IMAGES))
    connected = dump_message(DumpRequest(pid=Pid(7), images=IMAGES, tcp_established=True))
    assert (plain.opts.network_lock, connected.opts.network_lock) == (rpc.SKIP, rpc.NFTABLES)


def test_a_dump_leaves_the_tasks_running_unless_told_otherwise() -> None:
    message = dump_message(DumpRequest(pid=Pid(7), images=IMAGES, freeze_cgroup=Path("/sys/fs/cgroup/x")))
    assert message.type == rpc.DUMP
    assert message.opts.leave_running
    assert message.opts.freeze_cgroup == "/sys/fs/cgroup/x"
    assert message.opts.images_dir_fd == -1
    assert not message.opts.HasField("config_file")


def test_a_work_directory_of_its_own_goes_through_the_config_file(tmp_path: Path) -> None:
    work = tmp_path / "with a space"
    work.mkdir()
    message = dump_message(DumpRequest(pid=Pid(7), images=IMAGES, work=work))
    assert Path(message.opts.config_file).read_text() == f'work-dir "{work}"\n'


def test_a_restore_says_what_it_inherits_and_joins() -> None:
    message = restore_message(
        RestoreRequest(
            images=IMAGES,
            inherit_fds=(InheritFd(key="pipe:[5]", fd=9),),
            join_namespaces=(JoinNamespace(kind="time", path=Path("/proc/8/ns/time")),),
            cgroup_roots=(CgroupRoot(path="/x"), CgroupRoot(controller="cpu", path="/y")),
        )
    )
    assert [(item.key, item.fd) for item in message.opts.inherit_fd] == [("pipe:[5]", 9)]
    assert [(item.ns, item.ns_file) for item in message.opts.join_ns] == [("time", "/proc/8/ns/time")]
    assert [(item.ctrl, item.path) for item in message.opts.cg_root] == [("", "/x"), ("cpu", "/y")]
    assert not message.opts.HasField("network_lock")
