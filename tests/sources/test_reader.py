"""Remote assets: retried with fresh bytes, and named when they fail."""

import logging
import pickle

import cloudpickle
import numpy as np
import pytest
import rasterio
import rasterio.shutil

from smgrid.errors import AssetError, CatalogError, SourceError
from smgrid.sources.reader import AssetDriver
from tests.builders import write_cog
from tests.remote import GRID, assert_read, open_remote
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


def test_a_remote_asset_is_read(files, tmp_path):
    assert_read(open_remote(files, tmp_path, "plain.tif"))
    assert "/plain.tif" in files.log()


@pytest.mark.parametrize("crs", [None, "EPSG:32631"])
def test_a_failure_that_gdal_remembers_is_retried(files, tmp_path, crs, caplog):
    vv = open_remote(files, tmp_path, f"flaky{crs}.tif".replace(":", ""), crs=crs)
    files.set(fail=1)
    assert_read(vv)
    assert "HTTP response code: 503; attempt 1 of 3" in caplog.text


NOISE = np.random.default_rng(0).random((200, 250)).astype("float32")


def read_all(uri):
    with rasterio.open(uri) as source:
        return source.nodata, source.transform, source.read(1)


@pytest.mark.parametrize("crs", [None, "EPSG:32631"])
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(
    ("fault", "compress"),
    [
        ("corrupt", "deflate"),
        ("corrupt", "lzw"),
        *((fault, compress) for fault in ("short", "truncate") for compress in ("zstd", "none")),
    ],
)
def test_damaged_bytes_are_asked_for_again(files, monkeypatch, fault, skip, compress, crs):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01")
    geobox = GRID.zoom_to(NOISE.shape)
    name = f"{fault}{skip}{compress}{str(crs)[-5:]}.tif"
    plain = write_cog(files.folder / "plain.tif", NOISE, geobox, nodata=-1)
    rasterio.shutil.copy(plain, files.folder / name, driver="GTiff", tiled=True, compress=compress)
    files.set(fail=1, fault=fault, skip=skip)
    driver = AssetDriver(crs=crs)
    nodata, transform, values = driver.attempt(f"{files.url}/{name}", read_all)
    assert (nodata, transform) == (-1, geobox.affine)
    np.testing.assert_array_equal(values, NOISE)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
def test_a_header_that_came_short_is_no_file_without_nodata(files, caplog, level):
    """GDAL opens it all the same, without the tags that are missing."""
    url = f"{files.url}/header{level}.tif"
    zeros = np.zeros((3000, 2500), "uint8")  # so many tiles that their list fills half a request
    write_cog(files.folder / f"header{level}.tif", zeros, GRID.zoom_to(zeros.shape), nodata=1)
    files.set(fail=1000, fault="short", skip=0)
    with (
        caplog.at_level(level, "rasterio"),
        pytest.raises(AssetError, match=r"IO error during reading of \"GeoPixelScale\"") as raised,
    ):
        AssetDriver().attempt(url, lambda uri: rasterio.open(uri).close())
    assert raised.value.attempts == 3
    heard = [one for one in caplog.records if one.name.startswith("rasterio")]
    assert bool(heard) is (level == logging.DEBUG)


def test_an_asset_that_stays_away_is_named_and_can_be_read_later(files, tmp_path):
    vv = open_remote(files, tmp_path, "away.tif")
    files.set(fail=1000)
    with pytest.raises(
        SourceError, match=r"http://127.*/away\.tif cannot be read .*test.yml, line 1"
    ) as raised:
        vv.compute()
    error = raised.value
    assert isinstance(error, AssetError)
    assert error.asset == f"{files.url}/away.tif"
    assert error.attempts == 3
    assert error.reason == "HTTP response code: 503"
    files.set()
    assert_read(vv)


def test_a_failure_of_an_earlier_read_costs_a_later_one_no_attempt(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")
    vv = open_remote(files, tmp_path, "earlier.tif")
    files.set(fail=1000)
    with pytest.raises(AssetError):
        vv.compute()
    files.set()
    assert_read(vv)


def test_what_is_known_of_a_failure_survives_the_way_between_processes():
    error = AssetError("a.tif cannot be read", asset="a.tif", attempts=4, reason="HTTP 503")
    for again in (pickle.loads(pickle.dumps(error)), cloudpickle.loads(cloudpickle.dumps(error))):
        assert type(again) is AssetError
        assert str(again) == "a.tif cannot be read"
        assert (again.asset, again.attempts, again.reason) == ("a.tif", 4, "HTTP 503")


def test_a_local_file_is_tried_once(tmp_path):
    with pytest.raises(AssetError, match=r"absent\.tif cannot be read") as raised:
        AssetDriver().read_geobox(str(tmp_path / "absent.tif"))
    assert raised.value.attempts == 1


def test_a_header_is_read_as_patiently_as_pixels(files, tmp_path):
    write_cog(files.folder / "header.tif", np.zeros(GRID.shape, "float32"), GRID)
    files.set(fail=2)
    assert AssetDriver().read_geobox(f"{files.url}/header.tif") == GRID


def test_a_wait_that_a_busy_server_asks_for_is_kept(files, tmp_path):
    vv = open_remote(files, tmp_path, "busy.tif")
    files.set(block=1)
    assert_read(vv)
    times = [one["time"] for one in files.requests()]
    assert times[-1] - times[0] > 0.95
    assert len(times) < 12  # it was left alone


def test_a_stated_crs_on_a_signed_url_is_refused():
    driver = AssetDriver(crs="EPSG:4326", origin="c.yml, line 9")
    with pytest.raises(CatalogError, match=r"c\.yml, line 9: crs cannot be stated for a URL"):
        driver.to_readable("https://host/x.tif?sig=abc")
