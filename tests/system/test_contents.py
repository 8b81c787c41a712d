"""`ckpt show` and `ckpt diff` against real processes: they say what the process itself says, to the page."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from typing import Any

import pytest
from harness.command import Ckpt
from harness.processes import await_gone
from real.holding import Holder, holding

pytestmark = pytest.mark.system

PAGE = 4096

OPEN = """
import select, tempfile
held["file"] = open({folder!r} + "/notes", "a+b", buffering=0); held["file"].write(b"12345")
held["listener"] = socket.create_server(("127.0.0.1", 0))
held["six"] = socket.create_server(("::1", 0), family=socket.AF_INET6)
held["udp"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); held["udp"].bind(("127.0.0.1", 0))
held["pair"] = socket.socketpair(); held["pair"][0].send(b"hello")
held["abstract"] = socket.socket(socket.AF_UNIX); held["abstract"].bind("\\0{name}"); held["abstract"].listen(1)
held["netlink"] = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); held["netlink"].bind((0, 0))
held["pipe"] = os.pipe(); os.write(held["pipe"][1], b"1234567")
held["event"] = os.eventfd(7)
held["epoll"] = select.epoll(); held["epoll"].register(held["pipe"][0])
held["memfd"] = os.memfd_create("mine"); os.write(held["memfd"], b"abc")
held["gone"] = open({folder!r} + "/gone", "w+b"); os.unlink({folder!r} + "/gone")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.kill(os.getpid(), signal.SIGUSR1)
threading.Thread(target=select.poll().poll, args=(3600_000,), daemon=True).start()
answer = {{
    **{{name: held[name].fileno() for name in ("file", "listener", "six", "udp", "abstract", "netlink", "gone")}},
    **{{name: held[name] for name in ("event", "memfd")}},
    "epoll": held["epoll"].fileno(),
    "pair": [end.fileno() for end in held["pair"]], "pipe": held["pipe"],
    "addresses": {{name: "%s:%d" % held[name].getsockname() for name in ("listener", "udp")}},
    "port": held["six"].getsockname()[1],
    "inodes": {{fd: os.fstat(int(fd)).st_ino for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)}},
    "tids": sorted(map(int, os.listdir("/proc/self/task"))),
    "executable": os.readlink("/proc/self/exe"), "cwd": os.getcwd(), "umask": os.umask(0o027),
}}
answer = json.dumps(answer)
"""

# 64 pages between two that cannot be touched, so that the kernel joins them with no other mapping; 32 are written.
MAP = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
place = libc.mmap(None, 66 * 4096, 0, 0x22, -1, 0) + 4096
assert libc.mprotect(place, 64 * 4096, 3) == 0
assert libc.madvise(place, 64 * 4096, 15) == 0  # MADV_NOHUGEPAGE
def put(page, byte):
    ctypes.memset(place + page * 4096, byte, 4096)
for page in range(32):
    put(page, page + 1)
shared = mmap.mmap(-1, 16 * 4096)
for page in range(4):
    shared[page * 4096] = page + 1
answer = place
"""

# Pages 3 and 5 get other bytes, 7 zeros, 9 the bytes that it had; 40 and 41 are new; 10 to 12 are given back.
CHANGE = """
put(3, 200); put(5, 200); put(7, 0); put(9, 10); put(40, 1); put(41, 1)
assert libc.madvise(place + 10 * 4096, 3 * 4096, 4) == 0
shared[4096] = 100
held["file"].close(); held["new"] = socket.create_server(("127.0.0.1", 0))
os.read(held["pipe"][0], 3)
import resource
resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]))
held["child"] = subprocess.Popen(["/bin/sleep", "3600"])
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
answer = json.dumps({"child": held["child"].pid, "new": held["new"].fileno(), "address": "%s:%d" % held["new"].getsockname()})
"""


@pytest.fixture
def holder(ckpt: Ckpt) -> Iterator[Holder]:
    with holding() as holder:
        yield holder


def dump(ckpt: Ckpt, holder: Holder, job: str) -> str:
    return str(ckpt("dump", "--cgroup", holder.cgroup, "--name", job)["id"])


def test_show_says_what_the_process_says(ckpt: Ckpt, holder: Holder, tmp_path: Any) -> None:
    job = ckpt.new_job_name()
    said = json.loads(holder.do(OPEN.format(folder=str(tmp_path), name=job)))
    place = int(holder.do(MAP))
    shown = ckpt("show", dump(ckpt, holder, job))

    [task] = shown["tasks"]
    assert (task["tree"], task["pid"], task["pid_inside"]) == (holder.pid,) * 3
    assert sorted(thread["tid_inside"] for thread in task["threads"]) == said["tids"]
    assert (task["executable"], task["cwd"], task["umask"]) == (said["executable"], said["cwd"], 0o027)
    assert (task["state"], task["pending_signals"]) == ("alive", [10])
    limits = {limit["name"]: (limit["soft"], limit["hard"]) for limit in task["limits"]}
    assert limits["RLIMIT_NOFILE"] == resource.prlimit(holder.pid, resource.RLIMIT_NOFILE)
    assert not [namespace for namespace in task["namespaces"] if namespace["own"]]

    files = {each["fd"]: each["file"] for each in shown["descriptors"]}
    assert files.keys() >= {int(fd) for fd in said["inodes"]}
    notes = files[said["file"]]
    assert (notes["path"], notes["position"], notes["size_bytes"], notes["access"], notes["flags"]) == (
        f"{tmp_path}/notes",
        5,
        5,
        "rw",
        ["O_APPEND"],
    )
    assert (files[said["gone"]]["path"], files[said["gone"]]["deleted"]) == (f"{tmp_path}/gone", True)
    assert (files[said["memfd"]]["kind"], files[said["memfd"]]["size_bytes"]) == ("memfd", 3)
    assert files[said["event"]]["detail"] == "counter 7"
    assert files[said["epoll"]]["detail"] == f"watches {said['pipe'][0]}"

    sockets = {each["holders"][0]["fd"]: each for each in shown["sockets"] if each["holders"]}
    assert all(each["number"] == said["inodes"][str(fd)] for fd, each in sockets.items())
    ends = {name: sockets[said[name]] for name in ("listener", "six", "udp", "abstract", "netlink")}
    assert {name: (each["family"], each["state"]) for name, each in ends.items()} == {
        "listener": ("inet", "listening"),
        "six": ("inet6", "listening"),
        "udp": ("inet", "unconnected"),
        "abstract": ("unix", "listening"),
        "netlink": ("netlink", "unconnected"),
    }
    assert (ends["listener"]["local"], ends["udp"]["local"]) == tuple(said["addresses"].values())
    assert (ends["six"]["local"], ends["abstract"]["local"]) == (f"[::1]:{said['port']}", f"@{job}")
    one, other = (sockets[fd] for fd in said["pair"])
    assert (one["peer"], other["peer"]) == (other["number"], one["number"])
    assert (one["receive_bytes"], other["receive_bytes"]) == (0, 5)

    [pipe] = [each for each in shown["pipes"] if each["number"] == said["inodes"][str(said["pipe"][0])]]
    assert pipe["queued_bytes"] == 7
    assert [(each["fd"], each["access"]) for each in pipe["holders"]] == [
        (said["pipe"][0], "r"),
        (said["pipe"][1], "w"),
    ]

    [space] = [space for space in shown["memory"] if space["pids"] == [holder.pid]]
    [area] = [area for area in space["areas"] if area["start"] == place]
    assert (area["permissions"], area["kind"], area["size_bytes"], area["stored_bytes"]) == (
        "rw-p",
        "anonymous",
        64 * PAGE,
        32 * PAGE,
    )
    [shared] = [area for area in space["areas"] if area["kind"] == "shared memory"]
    assert (shared["size_bytes"], shared["stored_bytes"]) == (16 * PAGE, 4 * PAGE)
    assert sum(kind["size_bytes"] for kind in space["kinds"]) == space["size_bytes"]


def test_each_option_shows_its_part_for_people_and_as_json(ckpt: Ckpt, holder: Holder, tmp_path: Any) -> None:
    job = ckpt.new_job_name()
    said = json.loads(holder.do(OPEN.format(folder=str(tmp_path), name=job)))
    dumped = dump(ckpt, holder, job)
    whole = ckpt("show", dumped)
    parts = {
        "--tree": ["tasks"],
        "--maps": ["memory"],
        "--files": ["descriptors", "inodes"],
        "--sockets": ["sockets", "pipes"],
    }
    for option, names in parts.items():
        assert ckpt("show", dumped, option) == {"id": dumped} | {name: whole[name] for name in names}
    clocks = ckpt("show", dumped, "--clocks")
    assert clocks["clocks"] == whole["clocks"]
    assert {wait["call"] for wait in clocks["waits"]} == {"poll"}
    assert clocks["time_offsets"] == [{"tree": holder.pid, "monotonic_ns": 0, "boottime_ns": 0}]
    for option, word in {
        "--tree": f"thread {said['tids'][1]}",
        "--maps": "heap",
        "--files": f"{tmp_path}/notes",
        "--sockets": said["addresses"]["listener"],
        "--clocks": "waits in poll",
    }.items():
        done = ckpt.run("show", dumped, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert word in done.stdout
    plain = ckpt.run("show", dumped).stdout
    assert f"inet tcp [{said['inodes'][str(said['listener'])]}] listening" in plain


def test_diff_counts_every_page_and_names_what_came_and_went(
    ckpt: Ckpt, holder: Holder, tmp_path: Any
) -> None:
    job = ckpt.new_job_name()
    opened = json.loads(holder.do(OPEN.format(folder=str(tmp_path), name=job)))
    place = int(holder.do(MAP))
    first = dump(ckpt, holder, job)
    said = json.loads(holder.do(CHANGE))
    second = dump(ckpt, holder, job)
    changes = ckpt("diff", first, second)
    assert (changes["before"], changes["after"], changes["warnings"]) == (first, second, [])

    spaces = {tuple(space["pids"]): space for space in changes["memory"]}
    [area] = [area for area in spaces[holder.pid,]["areas"] if area["start"] == place]
    counts = {"same": 26, "changed": 3, "new": 2, "gone": 3}
    assert (area["change"], area["fields"]) == ("changed", [])
    assert area["pages"] == counts | {f"{name}_bytes": count * PAGE for name, count in counts.items()}
    [shared] = [
        space
        for space in changes["memory"]
        if space["name"].startswith("pagemap-shmem") and space["pages"]["changed"]
    ]
    assert [shared["pages"][name] for name in counts] == [3, 1, 0, 0]
    assert spaces[said["child"],]["change"] == "came"
    before, after = (
        {area["start"]: area for area in space_of(ckpt, each, holder)["areas"]} for each in (first, second)
    )
    areas = spaces[holder.pid,]["areas"]
    assert {area["start"] for area in areas if area["change"] == "came"} >= after.keys() - before.keys() - {
        area["start"] for area in areas if area["fields"]
    }

    assert [(each["change"], each["pid"]) for each in changes["tasks"]] == [
        ("changed", holder.pid),
        ("came", said["child"]),
    ]
    assert {"name": "threads", "before": 2, "after": 3} in changes["tasks"][0]["fields"]
    told = {(each["change"], each["pid"], each["subject"]) for each in changes["descriptors"]}
    # The new socket has the number of the file that was closed.
    assert said["new"] == opened["file"]
    assert ("changed", holder.pid, f"fd {said['new']} inet socket") in told
    assert [(each["change"], each["subject"]) for each in changes["sockets"]] == [
        ("came", f"tcp {said['address']}")
    ]
    [pipe] = changes["pipes"]
    assert pipe["fields"] == [{"name": "queued_bytes", "before": 7, "after": 4}]
    assert ("went", f"{tmp_path}/notes") in {(each["change"], each["subject"]) for each in changes["files"]}
    [limit] = [each for each in changes["limits"] if each["pid"] == holder.pid]
    assert limit["subject"] == "RLIMIT_CORE"
    assert {"name": "soft", "before": 0, "after": 4096} in limit["fields"]
    created = [ckpt("show", each)["clocks"] for each in (first, second)]
    assert changes["passed"]["monotonic_ns"] == created[1]["monotonic_ns"] - created[0]["monotonic_ns"]

    nothing = ckpt("diff", second, second)
    assert not any(nothing[name] for name in ("tasks", "descriptors", "files", "sockets", "pipes", "limits"))
    assert nothing["pages"]["changed"] == nothing["pages"]["new"] == nothing["pages"]["gone"] == 0
    shown = ckpt.run("diff", first, second).stdout
    assert (
        f"{place:x}-{place + 64 * PAGE:x} rw-p 256.0 KiB anonymous  26 the same (104.0 KiB), 3 changed"
        in shown
    )


def space_of(ckpt: Ckpt, checkpoint: str, holder: Holder) -> dict[str, Any]:
    [space] = [
        space for space in ckpt("show", checkpoint, "--maps")["memory"] if space["pids"] == [holder.pid]
    ]
    return space


def test_a_job_is_itself_after_a_restore_though_its_pids_are_others(ckpt: Ckpt) -> None:
    job = ckpt.new_job_name()
    command = "import mmap,os,socket,time; a,b=socket.socketpair(); r,w=os.pipe(); m=mmap.mmap(-1,8192); time.sleep(3600)"
    ran = ckpt("run", "--name", job, "--detach", "--", "/usr/bin/env", "python3", "-S", "-c", command)
    try:
        first = ckpt("dump", job, "--stop")
        await_gone([ran["pid"]])
        shown = ckpt("show", first["id"])
        assert {task["pid"] for task in shown["tasks"]} == {
            process["pid"] for tree in shown["trees"] for process in tree["processes"]
        }
        assert min(task["pid_inside"] for task in shown["tasks"]) == 1
        assert {"pid", "ipc"} <= {each["kind"] for each in shown["tasks"][0]["namespaces"] if each["own"]}
        ckpt("restore", first["id"])
        second = ckpt("dump", job)
        changes = ckpt("diff", f"{job}~1", job)
        assert (changes["before"], changes["after"]) == (first["id"], second["id"])
        assert changes["tasks"] == changes["sockets"] == changes["pipes"] == []
        assert not [each for each in changes["descriptors"] if each["change"] != "changed"]
        assert all(space["change"] == "changed" for space in changes["memory"])
        assert changes["pages"]["same"] > 10 * changes["pages"]["changed"]
    finally:
        ckpt.run("stop", job)
