import hashlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

from smgrid.errors import BundleError
from smgrid.models import published
from smgrid.models.bundle import load_ensemble
from tests.networks import make_network

# Prints its port, then answers until it is stopped. A process of its own: a server thread beside
# GDAL in one process is known to hang.
SERVER = """
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A folder of two small checkpoints, pinned in place of the published 25."""
    folder = tmp_path / "origin"
    folder.mkdir()
    pins = {}
    for depth, width in ((1, 4), (2, 4)):
        path = folder / f"coarse_{depth}_{width}.pt"
        torch.save(make_network(depth, width).state_dict(), path)
        pins[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("MAIN_SHA256", "PUBLISHED_SHA256"):
        monkeypatch.setattr(published, name, pins)
    monkeypatch.setattr("smgrid.models.checkpoints.PUBLISHED_SHA256", pins)
    monkeypatch.setattr(published, "_RETRIES", 0)
    monkeypatch.delenv("SMGRID_DENSESM_9KM", raising=False)
    return folder


@pytest.fixture
def server(origin, tmp_path, monkeypatch):
    command = [sys.executable, "-c", SERVER, str(origin)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        port = process.stdout.readline().strip()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(published, "BASE_URL", f"http://127.0.0.1:{port}/")
        monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))
        yield process
        process.kill()


def test_files_are_fetched_once_into_the_cache(server, tmp_path):
    ensemble = load_ensemble("densesm-9km")
    assert ensemble.names == ("coarse_1_4", "coarse_2_4")
    assert ensemble.layout.name == "released-9km"
    cached = sorted(p.name for p in (tmp_path / "cache" / "densesm-9km").iterdir())
    assert cached == ["coarse_1_4.pt", "coarse_2_4.pt"]
    server.kill()
    server.wait()
    assert load_ensemble("densesm-9km").digest == ensemble.digest


def test_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    digest = load_ensemble("densesm-9km").digest
    (tmp_path / "cache" / "densesm-9km" / "coarse_1_4.pt").write_bytes(b"half a fi")
    assert load_ensemble("densesm-9km").digest == digest


def test_corrupted_download_is_one_clear_error(server, origin, tmp_path):
    path = origin / "coarse_2_4.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"coarse_2_4\.pt could not be fetched.*hash") as error:
        load_ensemble("densesm-9km")
    assert "set SMGRID_DENSESM_9KM to a folder" in str(error.value)
    assert not (tmp_path / "cache" / "densesm-9km" / "coarse_2_4.pt").exists()


@pytest.mark.parametrize("fault", ["missing file", "no server"])
def test_failed_download_says_how_to_give_a_folder(server, origin, fault):
    (origin / "coarse_1_4.pt").unlink()
    if fault == "no server":
        server.kill()
        server.wait()
    with pytest.raises(BundleError, match=r"could not be fetched.*set SMGRID_DENSESM_9KM"):
        load_ensemble("densesm-9km")


def test_local_folder_needs_no_network(origin, monkeypatch):
    monkeypatch.setattr(published, "BASE_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("SMGRID_DENSESM_9KM", str(origin))
    assert load_ensemble("densesm-9km", layout="published").layout.name == "published"
    monkeypatch.delenv("SMGRID_DENSESM_9KM")
    assert published.published_folder(origin) == origin


def test_local_folder_is_verified(origin):
    path = origin / "coarse_2_4.pt"
    path.write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"coarse_2_4\.pt is not the published file: sha256"):
        published.published_folder(origin)
    path.unlink()
    with pytest.raises(BundleError, match=r"has no coarse_2_4\.pt; expected the 2 files"):
        published.published_folder(origin)


def test_origin_is_pinned_to_a_commit():
    assert published.BASE_URL == (
        "https://raw.githubusercontent.com/EOV-Solutions/Transfer-DenseSM-E_pack/"
        "c9638d9471681359c1fc242b46fafb918569281b/pretrained_models/DenseSM_9km/"
    )
    names = {f"coarse_{d}_{w}.pt" for d in range(1, 6) for w in (8, 16, 32, 64, 128)}
    assert set(published.MAIN_SHA256) == names


@pytest.mark.slow
def test_import_opens_no_connection():
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    raise AssertionError('network at import')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import smgrid.models.bundle\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.shared
def test_pins_are_those_of_the_provenance(shared):
    text = (shared / "data" / "densesm_9km" / "PROVENANCE.md").read_text()
    rows = re.findall(r"^([0-9a-f]{64})  (?:shallow/)?(\S+)$", text, re.MULTILINE)
    assert {name: sha256 for sha256, name in rows} == dict(published.PUBLISHED_SHA256)


@pytest.mark.shared
def test_published_weights_load_by_name(shared, monkeypatch):
    monkeypatch.setenv("SMGRID_DENSESM_9KM", str(shared / "data" / "densesm_9km"))
    ensemble = load_ensemble("densesm-9km")
    assert len(ensemble.members) == 25
    assert ensemble.layout.window == "causal"


@pytest.mark.shared
def test_fine_tuned_file_among_the_published_is_refused(shared, tmp_path, monkeypatch):
    for path in (shared / "data" / "densesm_9km").glob("*.pt"):
        shutil.copy(path, tmp_path)
    torch.save(make_network().state_dict(), tmp_path / "m_2_4.pt")
    monkeypatch.setenv("SMGRID_DENSESM_9KM", str(tmp_path))
    with pytest.raises(BundleError, match="keep them apart"):
        load_ensemble("densesm-9km")
