"""Every fault of a provider on the way from a search to a store, with real services on loopback.

Sentinel-1 scenes stand in a STAC API (rustac) and behind a server that fails on demand. With
retries the pixels are those of a day without faults; without, the error names exactly the asset
that failed, and all others can be read. The same holds for stores: byte for byte those of a day
without faults, or with a ledger of exactly the units that are missing, which a later run fills.
"""

import json
import time

import dask
import numpy as np
import pytest
import rasterio.shutil

import smgrid
from smgrid.catalog import Catalog
from smgrid.errors import AssetError, IncompleteStoreError, SourceError, UnitsFailedError
from smgrid.sources import load_source, search
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_cog
from tests.services import range_server, stac_server

GRID = utm_grid((20, 30), 100)
FINE = GRID.zoom_to((200, 300))
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))
STARTS = {
    "one": "2024-03-05T05:30:10",
    "two": "2024-03-11T17:20:40",
    "three": "2024-03-17T05:30:11",
}
# GDAL remembers the good bytes of a URL, too: every test has a collection, and URLs, of its own.
COLLECTIONS = 90

# What goes wrong, twice in a row unless it says otherwise, with one asset.
FAULTS = {
    "403 of an expired token": {"fault": "status", "status": 403},
    "404 for a moment": {"fault": "status", "status": 404},
    "429": {"fault": "status", "status": 429},
    "429 and a wait": {"fault": "status", "status": 429, "retry_after": 1, "fail": 1},
    "500": {"fault": "status", "status": 500},
    "503": {"fault": "status", "status": 503},
    "503 in the middle of a file": {"fault": "status", "status": 503, "skip": 3},
    "reset": {"fault": "reset"},
    "reset in the middle of a file": {"fault": "reset", "skip": 3},
    "stall": {"fault": "stall", "seconds": 20, "fail": 1},
    "silence": {"fault": "hang", "seconds": 20, "fail": 1},
    "truncated": {"fault": "truncate"},
    "truncated in the middle of a file": {"fault": "truncate", "skip": 1},
    "half a range, said to be whole": {"fault": "short"},
    "wrong bytes": {"fault": "corrupt"},
    "wrong bytes in the middle of a file": {"fault": "corrupt", "skip": 1},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Serve vv and vh of three scenes under as many folders as there are collections."""
    folder = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(3)
    (folder / "scenes").mkdir()
    for name in STARTS:
        for band in ("vv", "vh"):
            path = folder / "scenes" / f"{name}_{band}.tif"
            power = rng.uniform(0.01, 0.3, FINE.shape).astype("float32")
            plain = write_cog(folder / "plain.tif", power, FINE, nodata=-9999)
            rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=128)
    for number in range(COLLECTIONS):
        (folder / str(number)).symlink_to(folder / "scenes", target_is_directory=True)
    with range_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def api(files):
    items = []
    for number in range(COLLECTIONS):
        for name, start in STARTS.items():
            assets = {band: f"{files.url}/{number}/{name}_{band}.tif" for band in ("vv", "vh")}
            one = make_item(f"{name}-{number}", FINE, assets, start=start, platform="sentinel-1a")
            one.collection_id = f"s1-{number}"
            items.append(one)
    with stac_server(items) as running:
        yield running


@pytest.fixture
def spec(files, api, monkeypatch, tmp_path, numbers):
    """A collection that nobody read from, with waits that are short."""
    monkeypatch.setenv("SMGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01,0.02,0.03")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    files.set()
    api.set()
    return stac_spec(api.url, collection=f"s1-{next(numbers)}")


@pytest.fixture(scope="module")
def numbers():
    return iter(range(COLLECTIONS))


@pytest.fixture(scope="module")
def faultless(files):
    """Backscatter [dB] of the scenes, by arithmetic on their files."""
    expected = {}
    for band in ("vv", "vh"):
        scenes = []
        for name in STARTS:
            with rasterio.open(files.folder / "scenes" / f"{name}_{band}.tif") as source:
                fine = 10 * np.log10(source.read(1).astype("float64"))
            scenes.append(fine.reshape(20, 10, 30, 10).mean(axis=(1, 3)))
        expected[band] = np.stack(scenes)
    return expected


def load(spec):
    return load_source(spec, GRID, PERIOD, chunks=20)


def assert_faultless(ds, faultless):
    for band, expected in faultless.items():
        np.testing.assert_allclose(ds[band], expected, atol=1e-4)


def test_the_day_without_faults(spec, faultless):
    ds = load(spec)
    assert ds["vv"].chunks == ((1, 1, 1), (20,), (20, 10))
    assert_faultless(ds, faultless)


@pytest.mark.parametrize("name", FAULTS)
def test_with_retries_a_fault_of_the_file_server_leaves_no_trace(spec, files, faultless, name):
    ds = load(spec)
    files.set(**{"fail": 2, "match": "two_vh", **FAULTS[name]})
    assert_faultless(ds.compute(), faultless)
    missed = FAULTS[name].get("fail", 2)
    asked = [path for path in files.log() if "two_vh" in path]
    assert len(asked) > missed + FAULTS[name].get("skip", 0)


@pytest.mark.parametrize("name", FAULTS)
def test_beyond_the_retries_the_error_names_exactly_the_asset(
    spec, files, faultless, name, monkeypatch
):
    slow = "seconds" in FAULTS[name]
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none" if slow else "0.01")
    attempts = 1 if slow else 2
    ds = load(spec)
    fault = {
        key: value for key, value in FAULTS[name].items() if key not in ("skip", "retry_after")
    }
    files.set(**{**fault, "fail": 10**6, "match": "two_vh"})
    with pytest.raises(AssetError, match=r"two_vh\.tif cannot be read .*test\.yml") as raised:
        ds.compute()
    number = spec.stac.collection.removeprefix("s1-")
    assert raised.value.asset == f"{files.url}/{number}/two_vh.tif"
    assert raised.value.attempts == attempts
    assert raised.value.reason
    np.testing.assert_allclose(ds["vh"][0], faultless["vh"][0], atol=1e-4)
    files.set()
    # Reads that were under way when the first one failed may still meet the fault.
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.1,1,1")
    assert_faultless(ds.compute(), faultless)


def test_gdal_itself_takes_the_many_small_faults_of_a_busy_day(spec, files, faultless, monkeypatch):
    """An asset need not be read again where GDAL repeats single requests."""
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "4")
    ds = load(spec)
    files.set(fail=4, status=503, match="two")
    assert_faultless(ds.compute(), faultless)


@pytest.mark.parametrize("fault", ["status", "reset", "truncate", "hang"])
def test_a_fault_of_the_api_leaves_no_trace(spec, api, fault, monkeypatch):
    monkeypatch.setattr(search, "_TIMEOUTS", (1.0, 0.5))
    api.set(fail=2, fault=fault, seconds=30)
    begin = time.monotonic()
    assert load(spec)["vv"].sizes["time"] == 3
    assert time.monotonic() - begin < 20


def test_an_api_that_fails_too_often_is_named_and_what_it_said_before_is_enough(
    spec, api, faultless
):
    api.set(fail=10**6)
    with pytest.raises(SourceError, match=rf"{api.url} cannot be searched for s1-.*test\.yml"):
        load(spec)
    api.set()
    load(spec)
    api.set(fail=10**6)
    assert_faultless(load(spec), faultless)


@pytest.fixture(scope="module")
def undisturbed(files, api, numbers, tmp_path_factory):
    """What a store of the scenes holds on a day without faults."""
    files.set()
    api.set()
    spec = stac_spec(api.url, collection=f"s1-{next(numbers)}")
    store = tmp_path_factory.mktemp("undisturbed") / "cube.zarr"
    smgrid.write_cube(lazy_cube(spec), store, shard=20)
    return contents(store)


def lazy_cube(spec):
    catalog = Catalog("faults", "Scenes behind bad servers", {"s1": spec}, paths=())
    return smgrid.load_cube(GRID, (PERIOD.start, PERIOD.end), catalog=catalog, chunks=20)


def contents(store):
    """Return metadata, coordinates and shards; smgrid's own records tell when they were made."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and "_smgrid" not in path.parts
    }


def test_a_build_asks_for_no_more_than_reading_the_files_once(spec, files, numbers, tmp_path):
    cube = lazy_cube(spec)
    files.set()
    # One after another: two threads that open a file at the same time may both ask for its header.
    with dask.config.set(scheduler="synchronous"):
        smgrid.write_cube(cube, tmp_path / "cube.zarr", shard=20)
    asked = files.log()

    files.set()
    folder = f"{files.url}/{next(numbers)}"
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        for name in STARTS:
            for band in ("vv", "vh"):
                for left, right in ((0, 200), (200, 300)):
                    with rasterio.open(f"{folder}/{name}_{band}.tif") as source:
                        source.read(1, window=((0, 200), (left, right)))
    assert len(asked) <= len(files.log())


@pytest.mark.parametrize("name", FAULTS)
def test_with_retries_a_store_has_the_bytes_of_a_day_without_faults(
    spec, files, undisturbed, tmp_path, name
):
    cube = lazy_cube(spec)
    files.set(**{"fail": 2, "match": "two_vh", **FAULTS[name]})
    smgrid.write_cube(cube, tmp_path / "cube.zarr", shard=20)
    assert contents(tmp_path / "cube.zarr") == undisturbed
    assert len([path for path in files.log() if "two_vh" in path]) > FAULTS[name].get("fail", 2)


@pytest.mark.parametrize("name", [name for name in FAULTS if "seconds" not in FAULTS[name]])
def test_beyond_the_retries_the_ledger_names_the_missing_units_and_a_later_run_adds_them(
    spec, files, undisturbed, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0.01")
    store = tmp_path / "cube.zarr"
    cube = lazy_cube(spec)
    fault = {key: v for key, v in FAULTS[name].items() if key not in ("skip", "retry_after")}
    files.set(**{**fault, "fail": 10**6, "match": "two_vh"})
    with pytest.raises(UnitsFailedError, match="2 of 6 units failed, 4 were written now") as raised:
        smgrid.write_cube(cube, store, shard=20, attempts=2)

    asset = f"{files.url}/{spec.stac.collection.removeprefix('s1-')}/two_vh.tif"
    lines = (store / "_smgrid/failures.jsonl").read_text().splitlines()
    ledger = [json.loads(line) for line in lines]
    assert [tuple(entry["index"]) for entry in ledger] == [(1, 0, 0), (1, 0, 1)]
    assert {(e["asset"], e["attempts"], e["kind"]) for e in ledger} == {(asset, 2, "AssetError")}
    assert all(entry["reason"] for entry in ledger)
    assert len(raised.value.report.failed) == 2
    missing = {f"base/{band}/c/1/0/{tile}" for band in ("vv", "vh") for tile in (0, 1)}
    assert undisturbed.keys() - contents(store).keys() == missing
    with pytest.raises(IncompleteStoreError, match="2 of 6 units are missing"):
        smgrid.open_cube(store)

    files.set()
    report = smgrid.write_cube(lazy_cube(spec), store, shard=20)
    assert report.written == 2
    assert contents(store) == undisturbed
    assert not (store / "_smgrid/failures.jsonl").exists()
    assert {path.split("/")[-1].split("?")[0] for path in files.log()} == {
        "two_vv.tif",
        "two_vh.tif",
    }
