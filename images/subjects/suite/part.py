"""One part of the suite, which is there several times: ten tests that make files, run programs, and wait a little."""

from __future__ import annotations

import os
import subprocess
import time
import zlib

import pytest

NUMBER = int(__name__.rpartition("_")[2])


@pytest.mark.parametrize("number", range(4))
def test_files(tmp_path, row, number):
    with open(tmp_path / "growing", "w+") as file:
        for line in range(20):
            file.write(f"{line}\n")
            file.flush()
            time.sleep(0.01)
        file.seek(0)
        assert file.read().split() == list(map(str, range(20)))
    os.rename(tmp_path / "growing", tmp_path / "grown")
    assert os.listdir(tmp_path) == ["grown"]
    row(NUMBER + number)


@pytest.mark.parametrize("number", range(3))
def test_programs(tmp_path, row, number):
    script = f"for n in $(seq 1 20); do echo $n; sleep 0.01; done > out; wc -l < out; exit {number}"
    done = subprocess.run(["sh", "-c", script], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (number, "20")
    first = subprocess.Popen(["seq", "1", "3000"], stdout=subprocess.PIPE)
    second = subprocess.Popen(["wc", "-l"], stdin=first.stdout, stdout=subprocess.PIPE, text=True)
    first.stdout.close()
    assert second.communicate(timeout=60)[0].strip() == "3000"
    assert first.wait() == 0
    row(int(done.stdout))


@pytest.mark.parametrize("number", range(2))
def test_threads(worker, row, number):
    assert [worker(each) for each in (3, 4, 1000 + number)] == [3, 6, sum(range(1000 + number))]
    row(worker(NUMBER))


def test_captured(capfd, row):
    for number in range(20):
        print("line", number, flush=True)
        os.system(f"echo child {number}")
    out = capfd.readouterr().out
    assert out == "".join(f"line {number}\nchild {number}\n" for number in range(20))
    row(zlib.crc32(out.encode()))
