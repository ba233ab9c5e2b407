"""Maps and their overviews as tools see them that know nothing of smgrid: values and places."""

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.cube.overviews import write_overviews
from smgrid.cube.store import write_cube
from smgrid.grid import grid_coords
from smgrid.schema import describe

GRID = GeoBox.from_bbox((500_000, 5_650_000, 506_100, 5_654_700), crs="EPSG:32631", resolution=100)
TIMES = np.array(["2024-04-02T05:58:11", "2024-04-05T17:24:06"], "datetime64[ns]")
DIMS = ("time", "y", "x")
FACTORS = (2, 4)
# Pixels of the map by date, row and column: corners, edges, on both sides of a shard's border.
POINTS = [(0, 0, 0), (1, 46, 60), (0, 15, 16), (1, 16, 15), (0, 46, 31), (1, 20, 33)]


@pytest.fixture(scope="module")
def values():
    """What is written: soil moisture in whole counts of its packing, spread and flags."""
    rng = np.random.default_rng(7)
    shape = (2, *GRID.shape)
    moisture = rng.integers(500, 5500, shape) * 1e-4
    moisture[:, 30:34, 40:44] = np.nan
    return {
        "soil_moisture": moisture,
        "soil_moisture_std": rng.integers(1, 900, shape) * 1e-4,
        "flags": rng.integers(0, 4, shape).astype("uint16"),
    }


@pytest.fixture(scope="module")
def store(values, tmp_path_factory):
    """A sharded map of 47 x 61 pixels with overviews."""
    ds = xr.Dataset(
        {
            name: describe(
                xr.DataArray(
                    da.from_array(
                        array.astype("uint16" if name == "flags" else "float32"),
                        chunks=(1, 16, 16),
                    ),
                    dims=DIMS,
                ),
                name,
            )
            for name, array in values.items()
        },
        coords={
            **grid_coords(GRID),
            "time": TIMES,
            "platform": ("time", np.array(["sentinel-1a", "sentinel-1c"])),
        },
    )
    ds["flags"].attrs |= {
        "flag_masks": np.array([1, 2], "uint16"),
        "flag_meanings": "input_missing feature_clipped",
    }
    path = tmp_path_factory.mktemp("tools") / "sm.zarr"
    write_cube(ds, path, shard=16)
    write_overviews(path, smallest=16)
    return path


def counts(name, array):
    """Return values as they are on disk, computed anew."""
    if name == "flags":
        return array
    fill = {"soil_moisture": -32768, "soil_moisture_std": 65535}[name]
    return np.where(np.isnan(array), fill, np.rint(np.nan_to_num(array) / 1e-4)).astype(int)


def block_mean(array, factor):
    """Return the mean of a date's pixels below each pixel of an overview."""
    ny, nx = (-(-size // factor) for size in array.shape)
    blocks = [
        array[row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
        for row in range(ny)
        for col in range(nx)
    ]
    means = [np.nanmean(b) if np.isfinite(b).any() else np.nan for b in blocks]
    return np.array(means).reshape(ny, nx)


# ---------------------------------------------------------------- zarr-python


def test_plain_zarr_reads_what_was_written(store, values):
    group = zarr.open_group(store, mode="r", use_consolidated=True)
    for name, array in values.items():
        np.testing.assert_array_equal(group[name][:], counts(name, array))
        assert group[name].shards == (1, 16, 16)
    assert group["soil_moisture"].metadata.dimension_names == DIMS


def test_plain_zarr_finds_overviews_by_the_multiscales_attribute(store, values):
    group = zarr.open_group(store, mode="r", use_consolidated=True)
    first, *others = group.attrs["multiscales"]["layout"]
    assert first["asset"] == "."
    for factor, level in zip(FACTORS, others, strict=True):
        found = group[level["asset"]]["soil_moisture"][0]
        wanted = counts("soil_moisture", block_mean(values["soil_moisture"][0], factor))
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert list(found.shape) == level["spatial:shape"]


# ---------------------------------------------------------------- xarray


def test_plain_xarray_reads_values_dates_and_the_crs(store, values):
    pytest.importorskip("rioxarray")
    ds = xr.open_zarr(store, decode_coords="all")
    np.testing.assert_allclose(ds.soil_moisture, values["soil_moisture"], atol=1e-9)
    np.testing.assert_array_equal(ds.flags, values["flags"])
    np.testing.assert_array_equal(ds.time, TIMES)
    assert ds.platform.values.tolist() == ["sentinel-1a", "sentinel-1c"]
    assert ds.odc.geobox == GRID
    assert ds.rio.crs.to_epsg() == 32631
    assert ds.rio.resolution(recalc=True) == (100, -100)


def test_plain_xarray_opens_overviews_as_groups(store):
    groups = xr.open_groups(store, engine="zarr", decode_coords="all")
    for factor in FACTORS:
        level = groups[f"/overviews/{factor}"]
        size = 100 * factor
        assert level.odc.geobox.affine[:6] == (size, 0, 500_000, 0, -size, 5_654_700)
        np.testing.assert_array_equal(level.time, TIMES)


# ---------------------------------------------------------------- tensorstore


def open_with_tensorstore(path):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, read=True).result()


def test_tensorstore_reads_shards(store, values):
    for name, array in values.items():
        opened = open_with_tensorstore(store / name)
        assert opened.shape == array.shape
        assert opened.domain.labels == DIMS
        wanted = counts(name, array)
        for point in POINTS:
            assert opened[point].read().result() == wanted[point]
        np.testing.assert_array_equal(opened.read().result(), wanted)


def test_tensorstore_reads_overviews_and_coordinates(store, values):
    for factor in FACTORS:
        folder = store / "overviews" / str(factor)
        found = open_with_tensorstore(folder / "soil_moisture").read().result()
        for at in range(2):
            wanted = counts("soil_moisture", block_mean(values["soil_moisture"][at], factor))
            assert np.abs(found[at].astype(int) - wanted).max() <= 1
        flags = open_with_tensorstore(folder / "flags")
        corner = values["flags"][0, :factor, :factor]
        majority = sum(bit for bit in (1, 2) if np.mean((corner & bit) > 0) > 0.5)
        assert flags[0, 0, 0].read().result() == majority
        x = open_with_tensorstore(folder / "x").read().result()
        assert (x[0], x[1] - x[0]) == (500_000 + 50 * factor, 100 * factor)
    seconds = open_with_tensorstore(store / "time").read().result()
    np.testing.assert_array_equal(seconds.astype("datetime64[s]"), TIMES)


# ---------------------------------------------------------------- titiler.xarray


@pytest.fixture(scope="module")
def titiler(store):
    """Ask the tile server about a variable of the map."""
    if not (importlib.util.find_spec("titiler") and importlib.util.find_spec("uvicorn")):
        pytest.skip("titiler.xarray and uvicorn are not installed")
    script = Path(__file__).with_name("tile_server.py")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    port = int(process.stdout.readline())

    def ask(what, **query):
        selected = {"url": store.as_uri(), "variable": "soil_moisture", **query}
        address = f"http://127.0.0.1:{port}/{what}?{urlencode(selected)}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()

    yield ask
    process.terminate()
    process.wait(20)
    process.stdout.close()


def lonlat(row, column, factor=1):
    x, y = GRID.pix2wld((column + 0.5) * factor, (row + 0.5) * factor)
    return Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)


def test_titiler_knows_extent_and_crs(titiler):
    info = json.loads(titiler("info", sel=f"time={TIMES[1]}"))
    assert info["crs"].endswith("/EPSG/0/32631")
    assert info["bounds"] == [500_000, 5_650_000, 506_100, 5_654_700]
    assert (info["height"], info["width"]) == GRID.shape


@pytest.mark.parametrize("point", POINTS)
def test_titiler_has_the_value_at_a_place(titiler, values, point):
    at, row, column = point
    lon, lat = lonlat(row, column)
    for name, array in values.items():
        answer = titiler(f"point/{lon},{lat}", variable=name, sel=f"time={TIMES[at]}")
        assert json.loads(answer)["values"] == [pytest.approx(array[point], abs=1e-7)]


def test_titiler_has_the_value_of_an_overview(titiler, values):
    for factor in FACTORS:
        row, column = 3, 5
        lon, lat = lonlat(row, column, factor)
        query = {"group": f"overviews/{factor}", "sel": f"time={TIMES[0]}"}
        (found,) = json.loads(titiler(f"point/{lon},{lat}", **query))["values"]
        wanted = block_mean(values["soil_moisture"][0], factor)[row, column]
        assert found == pytest.approx(wanted, abs=0.51e-4)


def test_titiler_draws_a_tile(titiler, values):
    import morecantile

    scheme = morecantile.tms.get("WebMercatorQuad")
    tile = scheme.tile(*lonlat(23, 30), zoom=14)
    content = titiler(
        f"tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png",
        sel=f"time={TIMES[0]}",
        rescale="0,0.6",
    )
    with rasterio.MemoryFile(content) as file, file.open() as image:
        grey, alpha = image.read()[[0, -1]]
    bounds = scheme.xy_bounds(tile)
    to_map = Transformer.from_crs(3857, 32631, always_xy=True)
    checked = 0
    for row, column in np.ndindex(grey.shape):
        x = bounds.left + (column + 0.5) / grey.shape[1] * (bounds.right - bounds.left)
        y = bounds.top - (row + 0.5) / grey.shape[0] * (bounds.top - bounds.bottom)
        if row % 16 or column % 16:
            continue
        col, line = GRID.wld2pix(*to_map.transform(x, y))
        # Not within a tenth of a pixel of its edge, where the warper may round otherwise.
        if not (0.1 < col % 1 < 0.9 and 0.1 < line % 1 < 0.9):
            continue
        inside = 0 <= col < GRID.shape.x and 0 <= line < GRID.shape.y
        value = values["soil_moisture"][0, int(line), int(col)] if inside else np.nan
        assert (alpha[row, column] == 0) == np.isnan(value)
        if inside and not np.isnan(value):
            assert grey[row, column] == pytest.approx(255 * value / 0.6, abs=1.01)
            checked += 1
    assert checked > 50
