"""Remote assets: signed at read time, retried, and named when they fail."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from smgrid.errors import CatalogError, SourceError
from smgrid.sources import reader
from smgrid.sources.reader import AssetDriver
from smgrid.sources.sentinel1 import load_stac
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_catalog, write_cog

GRID = utm_grid((2, 2), 100)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))
# planetary-computer 1.0 still uses a form of pydantic that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Support for class-based:DeprecationWarning")


class Server:
    def __init__(self, folder):
        self.folder = folder
        script = Path(__file__).parents[1] / "range_server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def ask(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read()

    def log(self):
        return json.loads(self.ask("/_log"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("served"))
    yield running
    running.process.terminate()
    running.process.wait(10)
    running.process.stdout.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reader, "_GDAL_HTTP", {"GDAL_HTTP_MAX_RETRY": "0"})
    monkeypatch.setattr(reader, "_PAUSES", (0.01, 0.01))


def open_remote(server, tmp_path, name, **changes):
    """Open a scene of 0.1 (-10 dB) that the server holds under `name`."""
    geobox = GRID.zoom_to((20, 20))
    write_cog(server.folder / name, np.full(geobox.shape, 0.1, "float32"), geobox)
    item = make_item(
        "a",
        geobox,
        {"vv": f"{server.url}/{name}"},
        start="2024-03-05",
        **{"sat:relative_orbit": 88},
    )
    href = write_catalog(tmp_path / "stac", "s1", [item])
    spec = stac_spec(href, provides=("vv",), **changes)
    return load_stac(spec, GRID, PERIOD)["vv"]


def test_a_remote_asset_is_read(server, tmp_path):
    server.ask("/_state?fail=0&secret=")
    np.testing.assert_allclose(open_remote(server, tmp_path, "plain.tif"), -10, atol=1e-5)


def test_a_failure_that_gdal_remembers_is_retried(server, tmp_path):
    vv = open_remote(server, tmp_path, "flaky.tif")
    server.ask("/_state?fail=1&secret=")
    np.testing.assert_allclose(vv, -10, atol=1e-5)


def test_an_asset_that_stays_away_is_named_and_can_be_read_later(server, tmp_path):
    vv = open_remote(server, tmp_path, "away.tif")
    server.ask("/_state?fail=1000&secret=")
    with pytest.raises(
        SourceError, match=r"http://127.*/away\.tif cannot be read .*test.yml, line 1"
    ):
        vv.compute()
    server.ask("/_state?fail=0&secret=")
    np.testing.assert_allclose(vv, -10, atol=1e-5)


def test_urls_are_signed_when_they_are_read(server, tmp_path, monkeypatch):
    import planetary_computer

    token = {"now": "old"}
    signed = []

    def sign(href):
        signed.append(href)
        return f"{href}?sig={token['now']}"

    monkeypatch.setattr(planetary_computer, "sign", sign)
    server.ask("/_state?fail=0&secret=new")
    vv = open_remote(server, tmp_path, "signed.tif", sign="planetary-computer")
    assert signed == []
    token["now"] = "new"  # the token of the time of loading has expired
    np.testing.assert_allclose(vv, -10, atol=1e-5)
    assert set(signed) == {f"{server.url}/signed.tif"}
    assert all("sig=new" in asked for asked in server.log())


def test_no_signature_reaches_the_error(server, tmp_path, monkeypatch):
    import planetary_computer

    monkeypatch.setattr(planetary_computer, "sign", lambda href: f"{href}?sig=hidden")
    server.ask("/_state?fail=1000&secret=hidden")
    vv = open_remote(server, tmp_path, "secret.tif", sign="planetary-computer")
    with pytest.raises(SourceError, match=r"secret\.tif cannot be read") as raised:
        vv.compute()
    server.ask("/_state?fail=0&secret=")
    assert "hidden" not in str(raised.value)


def test_a_failure_to_sign_names_asset_and_cure(monkeypatch):
    import planetary_computer
    from requests.exceptions import HTTPError

    def sign(href):
        raise HTTPError("429 Too Many Requests")

    monkeypatch.setattr(planetary_computer, "sign", sign)
    driver = AssetDriver(sign="planetary-computer")
    with pytest.raises(SourceError, match=r"x\.tif could not be signed .*429.*PC_SDK_SUBSCRIPTION"):
        driver.to_readable("https://account.blob.core.windows.net/container/x.tif")


def test_a_stated_crs_on_a_signed_url_is_refused():
    driver = AssetDriver(crs="EPSG:4326", origin="c.yml, line 9")
    with pytest.raises(CatalogError, match=r"c\.yml, line 9: crs cannot be stated for a URL"):
        driver.to_readable("https://host/x.tif?sig=abc")


def test_the_users_gdal_options_come_first(monkeypatch):
    import rasterio

    monkeypatch.undo()
    assert AssetDriver().capture_env()["GDAL_HTTP_CONNECTTIMEOUT"] == "20"
    with rasterio.Env(GDAL_HTTP_TIMEOUT="7"):
        env = AssetDriver().capture_env()
    assert env["GDAL_HTTP_TIMEOUT"] in (7, "7")
