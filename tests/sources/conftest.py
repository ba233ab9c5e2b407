"""A file server on loopback, and a cache of its own for every test that fetches."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


class FileServer:
    """A folder that is served by a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        script = Path(__file__).with_name("file_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def plan(self, *faults, **changes):
        body = json.dumps({"faults": faults, **changes}).encode()
        urllib.request.urlopen(f"{self.url}/_plan", body, timeout=10).close()

    def log(self):
        with urllib.request.urlopen(f"{self.url}/_log", timeout=10) as answer:
            return json.loads(answer.read())

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="package")
def running_file_server(tmp_path_factory):
    running = FileServer(tmp_path_factory.mktemp("files"))
    yield running
    running.stop()


@pytest.fixture
def file_server(running_file_server):
    """The server, with no fault planned and nothing in its log."""
    running_file_server.plan()
    return running_file_server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SMGRID_CACHE", str(folder))
    return folder


@pytest.fixture
def later(monkeypatch):
    """A function that lets a number of days pass since the test began."""
    now = time.time

    def go_on(days):
        monkeypatch.setattr(time, "time", lambda: now() + days * 86400)

    return go_on
