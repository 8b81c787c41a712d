"""Real jobs under `ckpt run --every 2s`: everything is killed twenty times, and the results are as if nothing had been."""

from __future__ import annotations

import glob
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.filesystems import make_image
from harness.long_jobs import Build, LongJob, Power, Results, Suite
from harness.traces import Traces
from harness.waiting import await_condition
from real.crashing import Scene
from real.surviving import Slaughter, Survivor, moments

from ckpt.host import linux

pytestmark = pytest.mark.system

KILLS = 20
SEED = int(os.environ.get("CKPT_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
KINDS = (Suite, Build, Power)


def jobs_in(place: Path) -> list[LongJob]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return [kind(place) for kind in KINDS]


def undisturbed(place: Path) -> dict[str, Results]:
    """What the same commands make without ckpt, in the same place."""
    works = jobs_in(place)
    for work in works:
        work.gate.touch()
    processes = [work.undisturbed(dict(os.environ)) for work in works]
    found = {}
    for work, process in zip(works, processes, strict=True):
        log, _ = process.communicate(timeout=300)
        assert process.returncode == 0, log
        found[work.name] = work.results(log)
    return found


@pytest.mark.timeout(600)
def test_what_is_killed_twenty_times_with_everything_makes_what_it_makes_undisturbed(
    ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    print(f"CKPT_TEST_SEED={SEED}")
    scene = Scene(ckpt, traces)
    scene.remember()
    began = time.monotonic()
    expected = undisturbed(tmp_path / "work")
    survivors = [Survivor(ckpt, traces, work) for work in jobs_in(tmp_path / "work")]
    slaughter = Slaughter(traces, survivors)
    slaughter.start()
    for moment in moments(SEED, len(survivors)):
        slaughter.await_moment(moment)
        slaughter.kill()
        print(
            f"{time.monotonic() - began:.0f} s, {moment.when.value}, after {moment.after_s:.2f} s: {slaughter.hits[-1]}"
        )
        if len(slaughter.hits) == KILLS:
            # Also the last dump, which was interrupted, has done no harm to the store.
            assert ckpt("verify")["ok"]
        slaughter.start()
    for each in survivors:
        each.work.gate.touch()
    for each in survivors:
        assert each.process is not None
        assert each.process.wait(timeout=200) == 0, each.told()
        results = each.work.results(each.log())
        for name, value in expected[each.work.name].items():
            assert results[name] == value, f"{name} of {each.work.name}"

    # They were hit everywhere, and nothing of it is left.
    hits = [hit for all_of_them in slaughter.hits for hit in all_of_them]
    for what in ("runs", "dump", "restore of "):
        assert any(hit.startswith(what) for hit in hits), hits
    for each in survivors:
        ckpt("rm-job", each.name)
    scene.await_nothing_left(alive=())
    scene.assert_recovered()
    assert ckpt("verify")["ok"]
    assert ckpt("list")["checkpoints"] == []


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_others_had_mounted_meanwhile_and_nobody_needs_is_not_missed(
    ckpt: Ckpt, tmp_path: Path, kind: str
) -> None:
    name, place = ckpt.new_job_name(), tmp_path / "of others" / "place"
    place.parent.mkdir()
    if kind == "file":  # as the network of a container is
        place.touch()
        mounting = ["mount", "--bind", "/proc/self/ns/net", str(place)]
    else:
        place.mkdir()
        mounting = ["mount", "-t", "tmpfs", "others", str(place)]
    subprocess.run(mounting, check=True)
    try:
        ckpt("run", "--detach", "--name", name, "--", "sleep", "1000")
        ckpt("dump", name, "--stop")
    finally:
        subprocess.run(["umount", place], check=True)
    shutil.rmtree(place.parent)
    ckpt("restore", name)
    assert not place.parent.exists()
    # Nor does the next checkpoint know of it.
    ckpt("dump", name, "--stop")
    assert str(place) not in str(ckpt("show", name)["external_mounts"])
    ckpt("rm-job", name)


def test_what_others_unmount_in_the_middle_of_a_restore_is_not_missed(ckpt: Ckpt, tmp_path: Path) -> None:
    name = ckpt.new_job_name()
    places = [tmp_path / f"of others {number}" for number in range(200)]
    mounted: list[Path] = []
    try:
        for place in places:
            place.touch()
            linux.mount("/proc/self/ns/net", str(place), flags=linux.MS_BIND)
            mounted.append(place)
        ckpt("run", "--detach", "--name", name, "--", "sleep", "1000")
        ckpt("dump", name, "--stop")
        restoring = ckpt.start("restore", name)
        # As `ip netns delete` does, while CRIU is between the first of them and the last.
        await_condition(lambda: _is_binding(ckpt.state), "CRIU to mount")
        linux.umount(str(mounted.pop()))
        places[-1].unlink()
        assert restoring.wait(timeout=60) == 0
    finally:
        for place in mounted:
            linux.umount(str(place))
    ckpt("stop", name)
    ckpt("rm-job", name)


def _is_binding(state: Path) -> bool:
    # Path.glob() raises where a directory goes meanwhile.
    logs = glob.glob(f"{state}/operations/*/**/restore.log", recursive=True)
    return any("Bind /" in Path(log).read_text(errors="replace") for log in logs)


@pytest.mark.parametrize("used", [False, True])
def test_what_the_host_has_unmounted_meanwhile_and_nobody_needs_is_not_missed(
    ckpt: Ckpt, tmp_path: Path, *, used: bool
) -> None:
    name, place, image = ckpt.new_job_name(), tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    make_image("ext4", image)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        (place / "file").write_text("held")
        command = ["sh", "-c", f"exec sleep 1000 <{place / 'file'}"] if used else ["sleep", "1000"]
        ckpt("run", "--detach", "--name", name, "--", *command)
    finally:
        subprocess.run(["umount", place], check=True)
    if used:
        error = ckpt("dump", name, exit_code=21)["error"]
        assert str(place) in error["message"]
        ckpt("rm-job", name, "--force")
        return
    # Also with those that the restored job was begun with.
    for _ in range(2):
        ckpt("dump", name, "--stop")
        ckpt("restore", name)
    ckpt("dump", name, "--stop")
    ckpt("rm-job", name)
