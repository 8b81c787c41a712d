"""Real programs that are moved between hosts; each writes one line for each step, which begins with its number.

Rule: a program ends, and so writes no more lines, when it finds something wrong in what it holds.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.lab import Host
from harness.subjects import installed
from harness.waiting import await_condition

SOCKETS = """
import asyncio, socket, sys
log = open(sys.argv[1], "a", buffering=1)
async def main():
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    far_reader, far_writer = await asyncio.open_connection(sock=there)
    async def echo(reader, writer):
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
    echoing = asyncio.create_task(echo(far_reader, far_writer))
    server = await asyncio.start_unix_server(echo, "/run/moved.sock")
    named_reader, named_writer = await asyncio.open_unix_connection("/run/moved.sock")
    number = 0
    while True:
        number += 1
        for one, other in ((reader, writer), (named_reader, named_writer)):
            other.write(b"x%d\\n" % number)
            assert await asyncio.wait_for(one.readline(), 5) == b"X%d\\n" % number
        await asyncio.sleep(0.01)
        log.write(f"{number}\\n")
asyncio.run(main())
"""

PIPES = """
number=0
( while :; do echo tick; sleep 0.02; done ) | while read -r word; do
    number=$((number + 1))
    echo "$number $(echo "$word" | tr a-z A-Z)" >>"$1"
done
"""

MEMORY = """
import mmap, os, sys, time
log = open(sys.argv[1], "a", buffering=1)
deleted = open("/var/tmp/moved-deleted", "w+b")
deleted.write(bytes(2 << 20))
os.unlink(deleted.name)
named = open("/dev/shm/moved-named", "w+b")
named.truncate(1 << 20)
places = [mmap.mmap(named.fileno(), 1 << 20), mmap.mmap(-1, 1 << 20), mmap.mmap(deleted.fileno(), 1 << 20)]
sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.ftruncate(sealed, 1 << 20)
places.append(mmap.mmap(sealed, 1 << 20))
if not os.fork():
    while True:
        places[1][:8] = places[0][:8]
        time.sleep(0.001)
number = 0
while True:
    for place in places:
        at = 4096 * (number % 255 + 1)
        assert number < 256 or int(place[at:at + 20]) == number - 255
        place[at:at + 20] = b"%20d" % number
    places[0][:8] = b"%8d" % number
    deadline = time.monotonic() + 60
    while places[1][:8] != places[0][:8]:
        assert time.monotonic() < deadline, "the other process is silent"
        time.sleep(0.001)
    number += 1
    log.write(f"{number}\\n")
    time.sleep(0.005)
"""

THREADS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>
struct shared { pthread_mutex_t lock; pthread_cond_t moved; long turn; };
static struct shared *between;
static void step(long me, long of) {
    pthread_mutex_lock(&between->lock);
    while (between->turn % of != me) pthread_cond_wait(&between->moved, &between->lock);
    between->turn++;
    pthread_cond_broadcast(&between->moved);
    pthread_mutex_unlock(&between->lock);
}
static void *run(void *me) { for (;;) step((long)me, 6), usleep(200); return NULL; }
int main(int argc, char **argv) {
    between = mmap(NULL, sizeof *between, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (argc != 2 || between == MAP_FAILED) return 2;
    pthread_mutexattr_t lock;
    pthread_mutexattr_init(&lock);
    pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&lock, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&between->lock, &lock);
    pthread_condattr_t moved;
    pthread_condattr_init(&moved);
    pthread_condattr_setpshared(&moved, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&between->moved, &moved);
    long first = fork() ? 0 : 3;
    for (long number = first; number < first + 3; number++) {
        pthread_t thread;
        pthread_create(&thread, NULL, run, (void *)number);
    }
    if (first) for (;;) pause();
    int log = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 10000000}, {0, 10000000}};
    timerfd_settime(timer, 0, &every, NULL);
    for (long number = 1, before = 0;;) {
        uint64_t fired;
        if (read(timer, &fired, sizeof fired) != sizeof fired) return 3;
        long now = __atomic_load_n(&between->turn, __ATOMIC_SEQ_CST);
        if (now == before) continue;
        before = now;
        dprintf(log, "%ld %ld\\n", number++, now);
    }
}
"""

SERVER = """
const { appendFileSync } = require("fs"), { createServer, get } = require("http"), { Worker } = require("worker_threads");
const worker = new Worker(
    `const { parentPort } = require("worker_threads"); let count = 0; setInterval(() => parentPort.postMessage(++count), 10);`,
    { eval: true });
let counted = 0, number = 0;
worker.on("message", count => { if (count !== ++counted) process.exit(3); });
createServer((_, response) => response.end(`${counted}`)).listen(7341, "127.0.0.1");
setInterval(() => get({ port: 7341, host: "127.0.0.1", agent: false }, response => {
    response.resume();
    response.on("end", () => appendFileSync(process.argv[2], `${++number}\\n`));
}), 100);
"""

CLOCKS = """
import ctypes, os, select, struct, sys, threading, time
MONOTONIC, BOOTTIME, ABSOLUTE = 1, 7, 1
libc = ctypes.CDLL(None)
log = open(sys.argv[1], "a", buffering=1)
began = {clock: time.clock_gettime(clock) for clock in (MONOTONIC, BOOTTIME)}
def say(name, clock):
    log.write(f"{name} {clock} {time.clock_gettime(clock) - began[clock]:.3f}\\n")
def fire(name, clock, flags):
    at = int((began[clock] if flags else 0) * 1e9) + 3 * 10**9
    fd = libc.timerfd_create(clock, 0)
    libc.timerfd_settime(fd, flags, struct.pack("4q", 0, 0, at // 10**9, at % 10**9), None)
    os.read(fd, 8)
    say(name, clock)
def sleep():
    time.sleep(3)
    say("sleep", MONOTONIC)
def poll():
    select.select([], [], [], 3)
    say("poll", MONOTONIC)
waits = [(fire, f"{kind}-{clock}", clock, flags) for clock in began for kind, flags in (("in", 0), ("at", ABSOLUTE))]
for act, *words in (*waits, (sleep,), (poll,)):
    threading.Thread(target=act, args=words).start()
last = {clock: time.clock_gettime(clock) for clock in began}
while True:
    for clock, before in last.items():
        now = last[clock] = time.clock_gettime(clock)
        if not 0 <= now - before < 0.2:
            log.write(f"jump {clock} {now - before:.3f}\\n")
    time.sleep(0.002)
"""

TICKS = """
import os, sys, time
log = open(sys.argv[1], "a", buffering=1)
number = 0
while True:
    number += 1
    log.write(f"{number} {os.getpid()}\\n")
    time.sleep(0.01)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A program that runs somewhere, and its lines, which all hosts see."""

    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def await_more(self, more: int = 20) -> None:
        """Wait until it has done so many steps more, and see that none is missing or was done twice."""
        self.await_lines(len(self.lines()) + more)

    def await_lines(self, wanted: int) -> None:
        """Wait until it has done so many steps, and see that none is missing or was done twice."""
        await_condition(lambda: len(self.lines()) >= wanted, lambda: f"{self.log} to have {wanted} lines")
        numbers = [int(line.split()[0]) for line in self.lines()]
        assert numbers == list(range(1, len(numbers) + 1)), f"{self.log} misses some of its numbers"


def command_of(kind: str, folder: Path, log: Path) -> list[str]:
    """How a program is started; what it consists of is put into the folder."""
    python = [sys.executable, "-I", "-S"]
    match kind:
        case "threads":
            source, program = folder / "threads.c", folder / "threads"
            source.write_text(THREADS)
            subprocess.run(["gcc", "-O2", "-pthread", "-Wall", "-Werror", "-o", program, source], check=True)
            return [str(program), str(log)]
        case "pipes":
            return [installed("bash"), "-c", PIPES, "pipes", str(log)]
        case "server":
            # Some builds of node use io_uring, which CRIU cannot dump, unless told not to.
            return ["/usr/bin/env", "UV_USE_IO_URING=0", installed("node"), "-e", SERVER, "server", str(log)]
        case _:
            program = {"sockets": SOCKETS, "memory": MEMORY, "clocks": CLOCKS, "ticks": TICKS}[kind]
            return [*python, "-c", program, str(log)]


def start_outside(host: Host, cgroup: str, *command: object) -> int:
    """Start a command in a cgroup of the host as somebody else's program, no job of ckpt's; gives its pid there."""
    # Above the pids of the host's own first processes: there they are taken, here as on the other host.
    script = (
        "mkdir -p /sys/fs/cgroup/$0; read last </proc/sys/kernel/ns_last_pid; "
        '[ "$last" -gt 5000 ] || echo 5000 >/proc/sys/kernel/ns_last_pid; '
        'echo $$ >/sys/fs/cgroup/$0/cgroup.procs; setsid "$@" >/dev/null 2>&1 </dev/null & echo $!'
    )
    return int(host.must_run("sh", "-c", script, cgroup, *command))
