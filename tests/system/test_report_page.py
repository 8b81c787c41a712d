"""The page that `ckpt report` draws, as a real browser shows it: its numbers are those of show and diff.

CKPT_REPORT_PICTURE=FILE keeps a picture of the page: docs/report.png is made so.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.waiting import await_condition
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.system

PAGE_BYTES: Final = 4096
WAIT_S: Final = 30
WIDE, NARROW = 1280, 390
DRAWN = """
return [...document.querySelectorAll('.area canvas')].filter(c => c.closest('.area').style.display !== 'none')
    .some(c => c.width > 0 && c.dataset.cell)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def report(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> tuple[Path, list[str]]:
    """A page of three checkpoints of a program that goes on, and their ids."""
    workload.start("tree")
    job = ckpt.new_job_name()
    ids = [
        ckpt("dump", "--cgroup", workload.cgroup, "--name", job, "--message", f"<b>number {number}</b>")["id"]
        for number in range(3)
    ]
    path = tmp_path / "report.html"
    told = ckpt("report", *ids, "-o", path)
    assert told["checkpoints"] == ids
    assert told["size_bytes"] == path.stat().st_size
    return path, ids


def open_page(browser: webdriver.Chrome, path: Path, *, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width == NARROW},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    # What nobody looks at is not drawn.
    browser.execute_script("document.getElementById('memory').scrollIntoView()")
    WebDriverWait(browser, WAIT_S).until(lambda driver: driver.execute_script(DRAWN))


def cells(browser: webdriver.Chrome, table: str, key: str) -> list[str]:
    """The values of a column, in the order in which the rows stand."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(cell => cell.dataset.value)",
        f"#table-{table} td[data-key={key}]",
    )
    return found


def test_the_pages_numbers_are_those_of_show_and_diff(
    report: tuple[Path, list[str]], browser: webdriver.Chrome, ckpt: Ckpt
) -> None:
    path, ids = report
    open_page(browser, path, width=WIDE, scheme="light")
    assert cells(browser, "checkpoints", "id") == ids

    shown = ckpt("show", ids[-1])
    processes = {process["pid"] for tree in shown["trees"] for process in tree["processes"]}
    pids = "return [...document.querySelectorAll('#tree li')].map(item => Number(item.dataset.pid))"
    assert set(browser.execute_script(pids)) == processes
    descriptors = zip(cells(browser, "descriptors", "pid"), cells(browser, "descriptors", "fd"), strict=True)
    assert sorted((int(pid), int(fd)) for pid, fd in descriptors) == sorted(
        (descriptor["pid"], descriptor["fd"]) for descriptor in shown["descriptors"]
    )

    for number, (before, after) in enumerate(itertools.pairwise(ids), start=1):
        pages = ckpt("diff", before, after)["pages"]
        changed = int(cells(browser, "checkpoints", "changed_bytes")[number])
        assert changed == (pages["changed"] + pages["new"]) * PAGE_BYTES
    assert 0 < changed < shown["image_bytes"]
    drawn: list[dict[str, Any]] = browser.execute_script(
        "return [...document.querySelectorAll('#legend span')].map(item => ({...item.dataset}))"
    )
    by_state = {item["state"]: int(item["pages"]) for item in drawn}
    assert by_state["changed"] + by_state.get("stored", 0) >= pages["changed"]
    assert by_state["unchanged"] > 0


def test_nothing_is_loaded_and_what_a_checkpoint_says_is_text(
    report: tuple[Path, list[str]], browser: webdriver.Chrome
) -> None:
    path, _ = report
    open_page(browser, path, width=WIDE, scheme="light")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert cells(browser, "checkpoints", "message")[2] == "<b>number 2</b>"
    assert not browser.execute_script("return document.querySelectorAll('main b').length")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_the_width_and_can_be_read(
    report: tuple[Path, list[str]], browser: webdriver.Chrome, width: int, scheme: str
) -> None:
    path, _ = report
    open_page(browser, path, width=width, scheme=scheme)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
    style = "getComputedStyle(document.body)"
    ink, ground = (
        _luminance(browser.execute_script(f"return {style}.{name}")) for name in ("color", "backgroundColor")
    )
    assert (ink < ground) == (scheme == "light")
    lighter, darker = max(ink, ground), min(ink, ground)
    assert (lighter + 0.05) / (darker + 0.05) > 7
    size = "return Math.min(...[...document.querySelectorAll('td, dd, p')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    assert browser.execute_script(size) >= 11


def test_a_job_is_shown_with_the_pids_of_the_host(
    browser: webdriver.Chrome, ckpt: Ckpt, tmp_path: Path
) -> None:
    place = os.environ.get("CKPT_REPORT_PICTURE")
    job = "cache" if place else ckpt.new_job_name()
    port = str(free_port())
    options = ("--port", port, "--bind", "127.0.0.1", "--save", "", "--set-proc-title", "no")
    started = ckpt("run", "--detach", "--name", job, "--", "redis-server", *options)
    try:
        ids = []
        for number in range(5):
            fill(int(port), number)
            ids.append(ckpt("dump", job, "--message", f"after {number + 1} round(s) of writing")["id"])
        path = tmp_path / "report.html"
        ckpt("report", *ids, "-o", path)
    finally:
        ckpt("stop", job)
        ckpt("rm-job", job)
    open_page(browser, path, width=WIDE, scheme="light")
    by_pid = "return Object.fromEntries([...document.querySelectorAll('#tree li')].map(i => [i.dataset.pid, i.innerText]))"
    lines = browser.execute_script(by_pid)
    redis = next(line for line in lines.values() if "redis-server" in line)
    assert str(started["pid"]) in lines
    assert "MiB stored" in redis
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#memory h3')].map(h => h.innerText)"
    )
    assert any(title.endswith("redis-server") and title.split()[1] in lines for title in titles)
    if place:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDE, "height": 1400, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(str(Path(place).absolute()))


def test_a_click_on_a_column_sorts_the_table(
    report: tuple[Path, list[str]], browser: webdriver.Chrome
) -> None:
    path, _ = report
    open_page(browser, path, width=WIDE, scheme="light")
    for order in (False, True):
        browser.find_element("css selector", "#table-files th:nth-child(3) button").click()
        sizes = [int(value) for value in cells(browser, "files", "size_bytes")]
        assert sizes == sorted(sizes, reverse=order)
        assert len(set(sizes)) > 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def fill(port: int, number: int) -> None:
    """Write keys into a redis: the first time many, then fewer; the connection is closed on both sides after."""
    keys = 20_000 if number == 0 else 400 * number

    def connect() -> socket.socket | None:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        return None

    with await_condition(connect, "redis to listen") as connection:
        value = f"{number}" * 200
        commands = (
            f"*3\r\n$3\r\nSET\r\n${len(f'key:{key}')}\r\nkey:{key}\r\n$200\r\n{value}\r\n"
            for key in range(keys)
        )
        connection.sendall("".join(commands).encode() + b"*1\r\n$4\r\nQUIT\r\n")
        answers = b""
        while content := connection.recv(1 << 16):
            answers += content
    assert answers == b"+OK\r\n" * (keys + 1)


def _luminance(colour: str) -> float:
    """Of "rgb(r, g, b)", by the Web Content Accessibility Guidelines."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
