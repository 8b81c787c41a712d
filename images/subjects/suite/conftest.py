"""The fixtures of the suite: a database for all tests, a thread for each module, a row for each test."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    connection = sqlite3.connect(tmp_path_factory.mktemp("all") / "rows.db")
    connection.execute("CREATE TABLE rows (test TEXT PRIMARY KEY, value INTEGER)")
    yield connection
    rows = connection.execute("SELECT test, value FROM rows ORDER BY test").fetchall()
    Path("rows").write_text("".join(f"{test} {value}\n" for test, value in rows))
    connection.close()


@pytest.fixture
def row(database, request):
    yield lambda value: database.execute("INSERT INTO rows VALUES (?, ?)", (request.node.nodeid, value))
    database.commit()


@pytest.fixture(scope="module")
def worker():
    asked, answers = queue.Queue(), queue.Queue()

    def work():
        while (number := asked.get()) is not None:
            time.sleep(0.02)
            answers.put(sum(range(number)))

    def ask(number):
        asked.put(number)
        return answers.get(timeout=60)

    thread = threading.Thread(target=work)
    thread.start()
    yield ask
    asked.put(None)
    thread.join()
