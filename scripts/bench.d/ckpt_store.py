"""One use of ckpt's store in a fresh process, measured from inside: the start of python and imports excluded.

Usage: ckpt_store.py RESULT ingest STORE IMAGES [PARENT] | RESULT fetch STORE ID TARGET   [--profile FILE]

RESULT is a file that gets one JSON object. The peak is this process's own (VmHWM), python and all modules in it.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from meter import flush

from ckpt.host.criu.addresses import page_addresses
from ckpt.store.opening import open_local
from ckpt.units import CheckpointId

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from fakes.checkpoints import a_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("Usage: ")[2].partition("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--profile", type=Path)
    acts = parser.add_subparsers(dest="act", required=True)
    into = acts.add_parser("ingest")
    into.add_argument("store")
    into.add_argument("images", type=Path)
    into.add_argument("parent", nargs="?")
    out = acts.add_parser("fetch")
    out.add_argument("store")
    out.add_argument("id")
    out.add_argument("target", type=Path)
    options = parser.parse_args()
    profiler = Profiler() if options.profile else None
    if profiler:
        profiler.begin()
    began, cpu_began = time.monotonic(), time.process_time()
    if options.act == "ingest":
        facts = ingest(options.store, options.images, options.parent)
    else:
        facts = fetch(options.store, options.id, options.target)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    if profiler:
        profiler.end(options.profile)
    facts |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib()}
    options.result.write_text(json.dumps(facts))
    return 0


class Profiler:
    """cProfile, which knows one thread, in each thread that is started; their times are added."""

    def __init__(self) -> None:
        self._profiles = [cProfile.Profile()]

    def begin(self) -> None:
        plain_run = threading.Thread.run

        def run(thread: threading.Thread) -> None:
            profile = cProfile.Profile()
            self._profiles.append(profile)
            profile.runcall(plain_run, thread)

        # From python 3.12 on only one profile can be active at once: then the main thread alone is seen.
        if sys.version_info < (3, 12):
            threading.Thread.run = run  # type: ignore[method-assign]
        self._profiles[0].enable()

    def end(self, file: Path) -> None:
        self._profiles[0].disable()
        stats = pstats.Stats(*self._profiles)
        stats.dump_stats(str(file))


def ingest(place: str, images: Path, parent: str | None) -> dict[str, Any]:
    """Store all image files of a dump as one checkpoint, durable when this returns."""
    before = None if parent is None else CheckpointId(parent)
    store = open_local(place)
    addresses = page_addresses(images)
    with store.writer(parent=before) as writer:
        files = [
            writer.add_file(str(path), path.name, addresses=addresses.get(path.name, ()))
            for path in sorted(images.glob("*.img"))
        ]
        checkpoint = a_checkpoint(*files, job="bench", created_ns=time.time_ns())
        found = writer.commit(replace(checkpoint, parent=before))
        facts = {"id": found, "new_bytes": writer.new_bytes, "stored_bytes": writer.stored_bytes}
    flush(place)
    return facts


def fetch(place: str, checkpoint: str, target: Path) -> dict[str, Any]:
    """Write all image files of a checkpoint, verified."""
    store = open_local(place, create=False)
    stored = store.load(CheckpointId(checkpoint))
    for file in stored.checkpoint.image_sets[0].files:
        path = target / file.name
        store.fetch(stored.id, file, str(path))
        os.chmod(path, file.mode)
    return {"id": checkpoint}


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
