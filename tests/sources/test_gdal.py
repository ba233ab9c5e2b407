"""The options under which GDAL reads, wherever it reads."""

import os

import numpy as np
import pytest
import rasterio

from smgrid.errors import AssetError
from smgrid.sources.gdal import gdal_options
from smgrid.sources.reader import AssetDriver
from smgrid.sources.sentinel1 import load_stac
from tests.builders import make_item, stac_spec, write_catalog
from tests.remote import GRID, PERIOD, assert_read, open_remote
from tests.services import range_server


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with range_server(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Two quick retries of an asset, and none of GDAL's own."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.01")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    if "files" in request.fixturenames:
        request.getfixturevalue("files").set()


def seen_options():
    """Return what GDAL is told during a read, asked from inside of it."""
    return AssetDriver().attempt("a.tif", lambda uri: dict(rasterio.env.getenv()))


def test_the_options_of_user_and_environment_come_first(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_CONNECTTIMEOUT", "3")
    monkeypatch.setenv("GDAL_NUM_THREADS", "ALL_CPUS")
    with rasterio.Env(GDAL_HTTP_TIMEOUT="7"):
        captured = AssetDriver().capture_env()
        seen = seen_options()
    assert captured["GDAL_HTTP_TIMEOUT"] in (7, "7")
    assert str(seen["GDAL_HTTP_TIMEOUT"]) == "7"
    assert str(seen["GDAL_HTTP_CONNECTTIMEOUT"]) == "3"
    assert str(seen["GDAL_HTTP_LOW_SPEED_TIME"]) == "20"
    assert str(seen["GDAL_NUM_THREADS"]) == "1"
    assert "CPL_VSIL_CURL_NON_CACHED" not in seen


def test_what_is_new_to_a_second_attempt():
    seen = []

    def read(uri):
        seen.append(dict(rasterio.env.getenv()))
        if len(seen) < 3:
            raise rasterio.errors.RasterioIOError("Read failed")

    AssetDriver().attempt("https://127.0.0.1:9/a.tif", read)
    assert [one.get("CPL_VSIL_CURL_NON_CACHED") for one in seen] == [None, "/vsicurl/", "/vsicurl/"]


def test_a_failure_with_many_threads_is_not_read_as_data(files, tmp_path, monkeypatch):
    """GDAL_NUM_THREADS=2 makes GDAL return garbage where a request for plain tiles fails."""
    monkeypatch.setenv("GDAL_NUM_THREADS", "2")
    geobox = GRID.zoom_to((400, 400))
    path = files.folder / "threads.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "width": 400, "height": 400}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(
        path, "w", **profile, **tiles, crs="EPSG:32631", transform=geobox.affine
    ) as dst:
        dst.write(np.ones((400, 400), "float32"), 1)
    item = make_item("a", geobox, {"vv": f"{files.url}/threads.tif"}, start="2024-03-05")
    spec = stac_spec(write_catalog(tmp_path / "stac", "s1", [item]), provides=("vv",))
    vv = load_stac(spec, GRID, PERIOD)["vv"]
    files.set(fail=20, status=404, match="threads", skip=2)
    with pytest.raises(AssetError, match=r"threads\.tif cannot be read"):
        vv.compute()
    files.set()
    np.testing.assert_allclose(vv, 0, atol=1e-5)


def in_worker(url):
    """Return in another process: the options of a read, and whether GDAL's retries work."""
    from smgrid.sources.reader import AssetDriver

    options = AssetDriver().attempt("a.tif", lambda uri: dict(rasterio.env.getenv()))
    return os.getpid(), options


@pytest.mark.slow
def test_the_options_hold_on_the_workers_of_a_cluster(files, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "3")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.02")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pid, options = client.submit(in_worker, files.url).result()
        assert pid != os.getpid()
        expected = {**gdal_options({}), "GDAL_HTTP_MAX_RETRY": "3"}
        assert {name: str(options[name]) for name in expected} == expected
        monkeypatch.delenv("GDAL_HTTP_MAX_RETRY")  # what this process says does not matter there
        vv = open_remote(files, tmp_path, "cluster.tif")
        files.set(fail=3)
        assert_read(vv)
        with rasterio.Env(GDAL_HTTP_MAX_RETRY="0"):  # but what the user said when loading does
            vv = open_remote(files, tmp_path, "impatient.tif")
        files.set(fail=3)
        with pytest.raises(AssetError) as raised:
            vv.compute()
    assert raised.value.asset.endswith("/impatient.tif")
    assert (raised.value.attempts, raised.value.reason) == (1, "HTTP response code: 503")
