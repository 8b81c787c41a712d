"""images/head and images/sealed: two checkpoints of a real process, in a plain store and in an encrypted one.

What can be the same each time is: keys, salts, times. The dump is not: its process has another pid and other
addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from fakes.checkpoints import CREATED, SETTINGS, WORKLOAD, a_checkpoint
from reference.stores import IMAGES, expected_of, fetched, objects_in, opened

from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG, MANIFEST, checkpoint_id, digest_of
from ckpt.codec.records import StoreConfig
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.locate import find_criu
from ckpt.model.checkpoint import Checkpoint, GroupInstant
from ckpt.store.compress import to_object
from ckpt.store.sealing import SigningKey, wrap
from ckpt.store.signing import make_signature
from ckpt.store.store import Store
from ckpt.store.upgrading import encryption_of
from ckpt.store.writer import Writer
from ckpt.units import CHUNK_BYTES, SECOND, CheckpointId, JobName, Nanoseconds, Pid, Tag

SEED = hashlib.sha256(b"images: the key that signs").digest()
MASTER = hashlib.sha256(b"images: the master key").digest()
SECRET = "the secret of images/sealed"  # noqa: S105 - it protects nothing
KDF_COST_LOG2 = 10  # the least: tests open the store often

# It counts in memory, so that a second dump differs in a few pages.
PROGRAM = "i=0; while :; do i=$((i+1)); done"


GROUP = GroupInstant(
    name=JobName("shop"), instant="0123456789abcdef", members=(JobName("db"), JobName("web"))
)

# A carried file of each checkpoint: a chunk of zeros, then something that no other file has.
RING = {True: b"a ring buffer in /dev/shm", False: b"another one" * 500}


def make_stores() -> None:
    with the_same_random_numbers(), two_dumps() as (pid, dumps):
        encryption = encryption_of(wrap(SECRET.encode(), MASTER, kdf_cost_log2=KDF_COST_LOG2))
        make_store(
            "head", StoreConfig(id=digest_of(b"head"), signatures_required=True, encryption=None), pid, dumps
        )
        make_store(
            "sealed",
            StoreConfig(id=digest_of(b"sealed"), signatures_required=True, encryption=encryption),
            pid,
            dumps,
        )


def make_store(base: str, config: StoreConfig, pid: int, dumps: tuple[Path, Path]) -> None:
    place = IMAGES / base
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "config").write_bytes(to_object(Kind.CONFIG, CONFIG.encode(config)))
    how = {"signing_seed": SEED.hex()} | ({"secret": SECRET} if config.encryption else {})
    write_expected(base, how)
    store = opened(place, base)
    older = write(store, pid, dumps[0], None)
    newest = write(store, pid, dumps[1], older)
    store.tag(older, Tag("before-upgrade"))
    store.tag(newest, Tag("latest"))
    store.tag(newest, Tag("stable"))
    shutil.rmtree(place / "tmp")
    write_expected(base, how | what_it_holds(store))
    sizes = [path.stat().st_size for path in objects_in(place)]
    print(f"images/{base}: {older[:12]} and {newest[:12]}, {len(sizes)} objects, {sum(sizes)} bytes")


def write(store: Store, pid: int, images: Path, parent: CheckpointId | None) -> CheckpointId:
    with store.writer(parent) as writer:
        addresses = page_addresses(images)
        files = [
            writer.add_file(str(path), path.name, addresses.get(path.name, ()))
            for path in sorted(images.iterdir())
        ]
        with tempfile.TemporaryDirectory() as directory:
            ring = Path(directory, "ring")
            ring.write_bytes(bytes(CHUNK_BYTES) + RING[parent is None])
            carried = writer.add_file(str(ring), f"carried-{0 if parent is None else 1}")
            saved = writer.add_file(str(ring), "saved-0")
            volume = writer.add_file(str(ring), "volume-0")
        if parent is None:
            return commit(writer, of_process(pid, a_checkpoint(*files, carried=carried)))
        newer = a_checkpoint(
            *files,
            created_ns=CREATED + 60 * SECOND,
            message="",
            carried=carried,
            saved=saved,
            volume=volume,
            group=GROUP,
        )
        return commit(writer, dataclasses.replace(of_process(pid, newer), parent=parent))


def commit(writer: Writer, checkpoint: Checkpoint) -> CheckpointId:
    """Commit with a signature of a given instant."""
    found = checkpoint_id(MANIFEST.encode(checkpoint))
    signed = make_signature(SigningKey.from_seed(SEED), found, Nanoseconds(checkpoint.created_ns + SECOND))
    return writer.commit(checkpoint, signatures=(signed,))


def of_process(pid: int, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with this process in the place of the invented one."""
    tree = WORKLOAD.trees[0]
    process = dataclasses.replace(tree.processes[0], pid=Pid(pid), threads=(Pid(pid),))
    tree = dataclasses.replace(tree, root=Pid(pid), processes=(process,))
    images = dataclasses.replace(checkpoint.image_sets[0], root=Pid(pid))
    workload = dataclasses.replace(checkpoint.workload, trees=(tree,))
    thread = dataclasses.replace(SETTINGS.threads[1], thread=Pid(pid))
    settings = dataclasses.replace(SETTINGS, pid=Pid(pid), threads=(thread,))
    return dataclasses.replace(checkpoint, workload=workload, image_sets=(images,), settings=(settings,))


@contextlib.contextmanager
def two_dumps() -> Iterator[tuple[int, tuple[Path, Path]]]:
    """Two dumps of a process that knows nothing of this machine: no environment, no directory."""
    with tempfile.TemporaryDirectory() as directory:
        first, second = Path(directory, "1"), Path(directory, "2")
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            ["/bin/sh", "-c", PROGRAM],
            env={},
            cwd="/",
            stdin=null,
            stdout=null,
            stderr=null,
            start_new_session=True,
        )
        try:
            while " (sh) R " not in Path(f"/proc/{process.pid}/stat").read_text():
                time.sleep(0.01)
            for images in (first, second):
                images.mkdir()
                command = [str(find_criu()), "dump", "-t", str(process.pid), "-D", str(images), "-v0", "-R"]
                subprocess.run(command, check=True, stderr=null)
        finally:
            process.kill()
            process.wait()
        yield process.pid, (first, second)


@contextlib.contextmanager
def the_same_random_numbers() -> Iterator[None]:
    """Salts as if they were random, and the same each time."""
    numbers = itertools.count()

    def bytes_(count: int) -> bytes:
        return hashlib.shake_256(b"images: random %d" % next(numbers)).digest(count)

    with mock.patch.object(os, "urandom", bytes_):
        yield


def what_it_holds(store: Store) -> dict[str, object]:
    """What reading the store must give."""
    digests: dict[str, dict[str, str]] = {}
    kept = store.list()
    with tempfile.TemporaryDirectory() as directory:
        for stored in kept:
            digests[stored.id] = {
                file.name: digest_of(fetched(store, stored.id, file, Path(directory)))
                for file in stored.checkpoint.files
            }
    return {
        "checkpoints": [
            {
                "id": stored.id,
                "tags": stored.tags,
                "checkpoint": dataclasses.asdict(stored.checkpoint),
                "signatures": [dataclasses.asdict(found) for found in store.signatures(stored.id)],
            }
            for stored in kept
        ],
        "digests": digests,
    }


def write_expected(base: str, content: dict[str, object]) -> None:
    (IMAGES / f"{base}.json").write_text(json.dumps(content, indent=1) + "\n")
    assert expected_of(base)
