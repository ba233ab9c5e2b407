"""Services on loopback, each a process of its own: files by ranges, a STAC API, SAS tokens.

    with range_server(folder) as files, stac_server(items) as api, sas_server() as sas:
        files.set(fault="reset", fail=2)          # the next two requests for files are reset
        api.set(fault="status", status=503, fail=1)
        ...
        assert files.log() == [...]

`Service.set` forgets what was set before and empties the log; what can be set is documented in
`tests.range_server`.
"""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pystac

_SCRIPT = Path(__file__).with_name("range_server.py")
_START_S = 20


@dataclass(frozen=True)
class Service:
    """A running server of `tests.range_server`."""

    url: str
    folder: Path

    def ask(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read()

    def set(self, **state: Any) -> None:
        """Set the faults and signatures to come; all that is not named goes back to normal."""
        self.ask(f"/_state?{urlencode({'fresh': 1, **state})}")

    def log(self) -> list[str]:
        """Return the paths, with their queries, that were asked for since `set`."""
        return json.loads(self.ask("/_log"))

    def requests(self) -> list[dict[str, Any]]:
        """Return method, path, time, headers and body of the requests since `set`."""
        return json.loads(self.ask("/_requests"))


@contextmanager
def range_server(folder: Path | str) -> Iterator[Service]:
    """Serve the files of a folder by ranges, with faults on demand."""
    command = [sys.executable, str(_SCRIPT), str(folder)]
    with _running(command, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        yield Service(f"http://127.0.0.1:{port}", Path(folder))


@contextmanager
def sas_server(**state: Any) -> Iterator[Service]:
    """Give SAS tokens as the Planetary Computer does; set PC_SDK_SAS_URL to ``<url>/sas/token``."""
    with tempfile.TemporaryDirectory() as folder, range_server(folder) as service:
        service.set(**state)
        yield service


@contextmanager
def stac_server(items: Sequence[pystac.Item], *, pgstac: str = "") -> Iterator[Service]:
    """Serve items by a STAC API: rustac, behind a server that counts requests and injects faults.

    Without a PostgreSQL address in `pgstac` it holds them in memory and knows no queries.
    """
    program = Path(sys.executable).with_name("rustac")
    with tempfile.TemporaryDirectory() as folder:
        address = f"127.0.0.1:{free_port()}"
        command = [str(program), "serve", "-a", address]
        if pgstac:
            command += ["--pgstac", pgstac]
        else:
            command += _write_documents(Path(folder), items)
        with _running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_for(f"http://{address}/", process)
            with range_server(f"http://{address}") as service:
                yield service


def collection_of(name: str) -> dict[str, Any]:
    """Return the document of a collection of everything."""
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]])
    )
    found = pystac.Collection(name, "A collection for a test", extent, license="CC0-1.0")
    return found.to_dict(include_self_link=False)


def item_documents(items: Sequence[pystac.Item]) -> list[dict[str, Any]]:
    """Return the items as an API gives them; those of no collection belong to ``s1``."""
    documents = [item.to_dict(include_self_link=False, transform_hrefs=False) for item in items]
    return [{**one, "collection": one.get("collection") or "s1", "links": []} for one in documents]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    """Wait until a server answers; fail if its process ends first."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server of {url} ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} does not answer")


def _write_documents(folder: Path, items: Sequence[pystac.Item]) -> list[str]:
    documents = item_documents(items)
    names = sorted({one["collection"] for one in documents}) or ["s1"]
    paths = []
    for name in names:
        path = folder / f"collection-{name}.json"
        path.write_text(json.dumps(collection_of(name)))
        paths.append(str(path))
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": documents}))
    return [*paths, str(path)]


@contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout:
            process.stdout.close()
