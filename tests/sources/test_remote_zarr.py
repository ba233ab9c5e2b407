"""Zarr over HTTP: tokens from the environment, faults, holes, and no chunk more than is needed."""

import base64
import json
import logging
import traceback
from collections import Counter

import cloudpickle
import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from smgrid.catalog import SourceSpec
from smgrid.errors import AssetError, SourceError
from smgrid.grid import make_grid
from smgrid.sources import load_source, remote_zarr
from smgrid.sources.remote_zarr import RemoteStore, open_remote_zarr
from smgrid.windows import Period

TOKEN = "edh_pat_secret"
SECRETS = (TOKEN, base64.b64encode(f"edh:{TOKEN}".encode()).decode())
# 0.5 degrees from 10 W to 10 E, counted from 0 as on a globe; chunks of 8 days, 4 rows, 4 columns.
LAT = np.arange(52.0, 44.0, -0.5)
LON = np.concatenate([np.arange(0.0, 10.0, 0.5), np.arange(350.0, 360.0, 0.5)])
TIMES = pd.date_range("2024-01-01", periods=24 * 40, freq="h")
CHUNKS = (192, 4, 4)
GRID = make_grid(bbox=(5.9, 47.9, 6.6, 48.6), resolution=20_000)
# Consolidated metadata of version 3 is read by every library, though not yet in its specification.
pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def values(shape):
    """Kelvin that tell time, row and column apart."""
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (250 + t % 24 / 100 + y + x / 20).astype("float32")


@pytest.fixture(scope="module")
def stores(running_file_server):
    """Write one store of each version; rain is zero but for one day."""
    shape = (len(TIMES), len(LAT), len(LON))
    rain = np.zeros(shape, "float32")
    rain[24 * 9 + 3] = 0.005
    ds = xr.Dataset(
        {
            "t2m": (("valid_time", "latitude", "longitude"), values(shape)),
            "tp": (("valid_time", "latitude", "longitude"), rain, {"units": "m"}),
        },
        coords={"valid_time": TIMES, "latitude": LAT, "longitude": LON},
    )
    encoding = {name: {"chunks": CHUNKS} for name in ds}
    for version in (2, 3):
        ds.to_zarr(
            running_file_server.folder / f"v{version}.zarr",
            zarr_format=version,
            encoding=encoding,
            consolidated=True,
            write_empty_chunks=True,  # a chunk that is not there is one that got lost
        )
    # What Zarr fills with unless it is told otherwise.
    root = running_file_server.folder / "v3.zarr/zarr.json"
    root.write_text(root.read_text().replace('"fill_value": "NaN"', '"fill_value": 0.0'))
    assert (
        json.loads(root.read_text())["consolidated_metadata"]["metadata"]["tp"]["fill_value"] == 0
    )
    return ds


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.01,0.01")
    monkeypatch.setattr(remote_zarr, "_TIMEOUT", "500ms")


@pytest.fixture
def loopback_wants_a_token(monkeypatch, file_server):
    login = remote_zarr._LOGINS["data.earthdatahub.destine.eu"]
    monkeypatch.setattr(remote_zarr, "_LOGINS", {"127.0.0.1": login})
    monkeypatch.setattr(remote_zarr, "_LOGIN_SCHEMES", ("http",))
    monkeypatch.setenv("EDH_TOKEN", f"{TOKEN}\n")
    file_server.plan(password=f"edh:{TOKEN}")


def spec(url, **changes):
    fields = {
        "name": "edh",
        "loader": "smgrid.sources.era5:load",
        "provides": ("t2m",),
        "paths": (url,),
        "assets": {"t2m": "t2m", "tp": "tp"},
        "units": {"t2m": "K", "tp": "m"},
        "native_resolution": 55_660.0,
        "options": {"accumulation": "per-step"},
        "origin": "test.yml, line 4",
    }
    return SourceSpec(**(fields | changes))


def chunks_read(file_server, name="t2m"):
    """Return how often each chunk of a variable was asked for."""
    paths = [asked["path"].partition(f"/{name}/")[2] for asked in file_server.log()]
    return Counter(path for path in paths if path and not path.startswith((".z", "zarr.json")))


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_reads_as_it_was_written(file_server, stores, version):
    ds = open_remote_zarr(f"{file_server.url}/v{version}.zarr")
    window = {"latitude": slice(3, 6), "longitude": slice(0, 9), "valid_time": slice(100, 300)}
    np.testing.assert_array_equal(ds["t2m"].isel(window), stores["t2m"].isel(window))


@pytest.mark.parametrize("version", [2, 3])
def test_each_chunk_under_region_and_period_is_read_once_and_no_other(file_server, stores, version):
    period = Period.parse(("2024-01-05", "2024-01-20"))  # hours 96 to 480: chunks 0, 1 and 2
    file_server.plan()
    ds = load_source(spec(f"{file_server.url}/v{version}.zarr"), GRID, period)
    assert chunks_read(file_server) == {}, "described without reading"
    assert len(ds["t2m"].__dask_graph__()) < 200
    values = ds["t2m"].compute()
    # 48 to 48.5 N and 6 to 6.5 E are rows 7 and 8, columns 12 and 13; with a pixel around them
    # rows 6 to 9 and columns 11 to 14, so chunks 1, 2 and 2, 3.
    read = chunks_read(file_server)
    separator = "/" if version == 3 else "."
    wanted = {
        separator.join(map(str, (t, y, x))) for t in (0, 1, 2) for y in (1, 2) for x in (2, 3)
    }
    assert {path.removeprefix("c/") for path in read} == wanted
    assert set(read.values()) == {1}
    # The pixel of 48 N 6 E is row 8, column 12; the mean of t % 24 / 100 is 0.115.
    south_west = values[:, -1, 0]
    np.testing.assert_allclose(south_west, 250 + 0.115 + 8 + 12 / 20, rtol=1e-6)


def test_shards_are_read_by_ranges(file_server, stores):
    encoding = {"t2m": {"chunks": (96, 4, 4), "shards": (192, 8, 8)}}
    path = file_server.folder / "sharded.zarr"
    stores[["t2m"]].to_zarr(path, zarr_format=3, encoding=encoding, consolidated=True)
    period = Period.parse(("2024-01-05", "2024-01-20"))
    expected = load_source(spec(f"{file_server.url}/v3.zarr"), GRID, period)
    file_server.plan("cut")
    ds = load_source(spec(f"{file_server.url}/sharded.zarr"), GRID, period)
    np.testing.assert_array_equal(ds["t2m"], expected["t2m"])
    assert any(asked["range"] for asked in file_server.log() if "/t2m/c/" in asked["path"])


def test_years_at_a_point_are_a_task_per_chunk(file_server, stores):
    url = f"{file_server.url}/v2.zarr"
    period = Period.parse(("2024-01-01", "2024-02-08"))
    ds = load_source(spec(url), GRID, period)
    (optimised,) = dask.optimize(ds["t2m"])
    reads = [key for key in optimised.__dask_graph__() if "t2m" in str(key)]
    assert len(optimised.__dask_graph__()) < 150
    assert len(reads) <= 2 * 5 * 4


def test_a_region_on_both_sides_of_greenwich(file_server, stores):
    grid = make_grid(bbox=(-1.1, 47.9, 1.1, 48.1), resolution=20_000)
    ds = load_source(spec(f"{file_server.url}/v2.zarr"), grid, Period.parse(("2024-01-02",) * 2))
    found = ds["t2m"].values[0, -1]
    lon = np.array([c.geographic_extent.centroid.coords[0][0] for c in _cells(grid)])
    column = np.round(lon / 0.5).astype(int) % len(LON)
    np.testing.assert_allclose(found, 250 + 0.115 + 8 + column / 20, rtol=1e-5)
    read = chunks_read(file_server)
    # Columns 37 to 39 and 0 to 3.
    assert {path.split(".")[2] for path in read} == {"9", "0"}
    assert set(read.values()) == {1}


def _cells(grid):
    return [grid[grid.shape.y - 1 : grid.shape.y, x : x + 1] for x in range(grid.shape.x)]


def test_the_token_opens_and_reads(file_server, stores, loopback_wants_a_token):
    ds = load_source(
        spec(f"{file_server.url}/v3.zarr"), GRID, Period.parse(("2024-01-02", "2024-01-03"))
    )
    assert np.isfinite(ds["t2m"].values).all()
    assert {asked["authorization"] for asked in file_server.log()} == {f"Basic {SECRETS[1]}"}


def test_the_token_is_in_no_graph_and_a_worker_takes_its_own(
    file_server, stores, loopback_wants_a_token, monkeypatch
):
    ds = load_source(
        spec(f"{file_server.url}/v3.zarr"), GRID, Period.parse(("2024-01-02", "2024-01-03"))
    )
    sent = cloudpickle.dumps(ds["t2m"])
    assert not any(secret.encode() in sent for secret in SECRETS)
    assert not any(secret in repr(RemoteStore(f"{file_server.url}/v3.zarr")) for secret in SECRETS)
    monkeypatch.setenv("EDH_TOKEN", "new")
    file_server.plan(password="edh:new")
    assert np.isfinite(cloudpickle.loads(sent).values).all()


def test_the_token_is_not_sent_along_to_another_host(file_server, stores, loopback_wants_a_token):
    from tests.sources.conftest import FileServer

    elsewhere = FileServer(file_server.folder)
    file_server.plan(redirect=f"http://localhost:{elsewhere.port}")
    try:
        open_remote_zarr(f"{file_server.url}/v2.zarr")
        assert {asked["authorization"] for asked in elsewhere.log()} == {None}
    finally:
        elsewhere.stop()


def test_a_host_that_wants_no_token_gets_none(file_server, stores, monkeypatch):
    monkeypatch.setenv("EDH_TOKEN", TOKEN)
    open_remote_zarr(f"{file_server.url}/v2.zarr")
    assert {asked["authorization"] for asked in file_server.log()} == {None}


def test_a_missing_token_is_said_before_any_request(
    file_server, stores, loopback_wants_a_token, monkeypatch
):
    monkeypatch.delenv("EDH_TOKEN")
    with pytest.raises(SourceError, match=r"v2\.zarr needs a token; .*set the .*variable EDH_TOK"):
        open_remote_zarr(f"{file_server.url}/v2.zarr")
    assert file_server.log() == []


def test_a_token_that_expired_is_named_and_not_shown(
    file_server, stores, loopback_wants_a_token, caplog
):
    ds = load_source(spec(f"{file_server.url}/v2.zarr"), GRID, Period.parse(("2024-01-02",) * 2))
    file_server.plan(password="edh:other")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(SourceError, match=r"was refused; the token in EDH_TOKEN has exp") as raised,
    ):
        ds.compute()
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert not any(secret in shown for secret in SECRETS)
    assert set(chunks_read(file_server).values()) == {1}, "a refusal is not asked for again"


@pytest.mark.parametrize("faults", [["503", "429"], ["cut"], ["short"], ["stall"], ["500", "cut"]])
def test_with_retries_the_values_are_the_same(file_server, stores, faults):
    period = Period.parse(("2024-01-02", "2024-01-03"))
    ds = load_source(spec(f"{file_server.url}/v3.zarr"), GRID, period)
    expected = ds.compute()
    file_server.plan(*faults)
    assert ds.compute().equals(expected)
    assert sum(chunks_read(file_server).values()) > len(chunks_read(file_server))


@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_beyond_the_retries_the_chunk_is_named_and_can_be_read_later(file_server, stores, fault):
    period = Period.parse(("2024-01-02", "2024-01-03"))
    ds = load_source(spec(f"{file_server.url}/v2.zarr"), GRID, period)
    file_server.plan(*[fault] * 40)
    with pytest.raises(AssetError, match=r"v2\.zarr/t2m/0\.\d\.\d cannot be read .*4 attempts"):
        ds.compute(scheduler="sync")
    file_server.plan()
    assert np.isfinite(ds["t2m"].values).all()


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_lost_is_missing_and_not_dry(file_server, stores, version, monkeypatch):
    lost = file_server.folder / f"v{version}.zarr/tp" / ("c/1" if version == 3 else "")
    lost = sorted(lost.glob("*/*" if version == 3 else "1.*"))
    assert lost
    contents = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    try:
        entry = spec(f"{file_server.url}/v{version}.zarr", provides=("tp",))
        rain = load_source(entry, GRID, Period.parse(("2024-01-02", "2024-01-25")))["tp"].values
    finally:
        for path, content in zip(lost, contents, strict=True):
            path.write_bytes(content)
    # Hours 192 to 383: the 9th to the 16th; the total of the 8th needs 00 UTC of the 9th.
    gone = np.isnan(rain[:, 0, 0])
    expected = np.zeros(24, bool)
    expected[6:15] = True
    np.testing.assert_array_equal(gone, expected)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(
    ("version", "encoding"),
    [
        (2, {"_FillValue": None}),
        (2, {"dtype": "i2", "scale_factor": 0.001, "add_offset": 5.0, "_FillValue": -9999}),
        (3, {"dtype": "i2", "scale_factor": 0.001, "add_offset": 5.0, "_FillValue": -9999}),
    ],
)
def test_a_chunk_that_is_lost_is_missing_whatever_the_store_fills_with(
    file_server, version, encoding
):
    name = f"holes-{version}-{len(encoding)}.zarr"
    path = file_server.folder / name
    ds = xr.Dataset({"tp": ("time", np.full(4, 5.004, "f4"))}, coords={"time": np.arange(4)})
    encoding = {"tp": {"chunks": (2,), **encoding}}
    ds.to_zarr(path, zarr_format=version, consolidated=True, encoding=encoding)
    (path / ("tp/1" if version == 2 else "tp/c/1")).unlink()
    values = open_remote_zarr(f"{file_server.url}/{name}")["tp"].values
    np.testing.assert_allclose(values, [5.004, 5.004, np.nan, np.nan], atol=1e-3)


def test_a_store_of_global_chunks_is_refused_for_long_periods(file_server, stores):
    entry = spec(f"{file_server.url}/v2.zarr", options={"max_days": 10})
    load_source(entry, GRID, Period.parse(("2024-01-02", "2024-01-11")))
    file_server.plan()
    with pytest.raises(
        SourceError,
        match=r"line 4: edh is read for 10 days at most .*not for the 11 .*long in time",
    ):
        load_source(entry, GRID, Period.parse(("2024-01-02", "2024-01-12")))
    assert file_server.log() == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{server}/none.zarr", r"none\.zarr cannot be read as a Zarr store .*check the URL"),
        ("https://edh:pw@data.earthdatahub.destine.eu/x.zarr", "carries a user or password"),
        ("ftp://host/x.zarr", r"give an https:// or gs:// URL"),
    ],
)
def test_what_cannot_be_opened(file_server, stores, url, message):
    with pytest.raises(SourceError, match=message) as raised:
        open_remote_zarr(url.format(server=file_server.url))
    assert "pw" not in str(raised.value).replace("password", "")


@pytest.mark.parametrize(
    ("host", "variable", "header"),
    [
        ("data.earthdatahub.destine.eu", "EDH_TOKEN", f"Basic {SECRETS[1]}"),
        ("arco.datastores.ecmwf.int", "CDSAPI_KEY", f"Bearer {TOKEN}"),
    ],
)
def test_how_providers_want_their_tokens(host, variable, header, monkeypatch):
    monkeypatch.setenv(variable, TOKEN)
    assert remote_zarr._authorization(f"https://{host}/x.zarr") == header
    assert remote_zarr._authorization(f"http://{host}/x.zarr") is None
    assert remote_zarr._authorization(f"https://{host}.example.com/x.zarr") is None


def test_buckets_of_google_are_read_without_an_account():
    store = RemoteStore("gs://gcp-public-data-arco-era5/ar/1959-2022.zarr-v2")
    assert store.store.config["skip_signature"] in (True, "true")
