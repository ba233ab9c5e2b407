"""Soil: no shift in Homolosine, area means when coarser, native pixels when finer, units, gaps."""

import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SchemaError
from smgrid.grid import make_grid, pixel_centres
from smgrid.schema import get_variable
from smgrid.sources import load_source
from smgrid.sources.soilgrids import load
from smgrid.windows import Period
from tests.builders import write_cog

PERIOD = Period.parse("2024")
HOMOLOSINE = "ESRI:54052"
_TO_HOMOLOSINE = Transformer.from_crs("EPSG:4326", HOMOLOSINE, always_xy=True)


def lattice(lon=3.0, lat=50.8, size=80):
    """Return pixels of 250 m around a place, on SoilGrids' multiples of 250 m."""
    x, y = _TO_HOMOLOSINE.transform(lon, lat)
    left, top = 250 * round(x / 250) - 125 * size, 250 * round(y / 250) + 125 * size
    return GeoBox.from_bbox(
        (left, top - 250 * size, left + 250 * size, top), HOMOLOSINE, resolution=250
    )


def spec(path, **changes):
    fields = {
        "name": "soil",
        "loader": "smgrid.sources.soilgrids:load",
        "provides": ("sand",),
        "assets": {"sand": str(path)},
        "units": {"sand": "g/kg"},
        "nodata": -32768,
        "native_resolution": 250.0,
        "origin": "test.yml, line 9",
    }
    return SourceSpec(**(fields | changes))


@pytest.mark.parametrize("stated", ["in the file", "ESRI:54052", "+proj=igh +datum=WGS84 +units=m"])
def test_every_cell_gets_the_pixel_its_centre_lies_in(tmp_path, stated):
    native = lattice()
    rows, cols = np.indices(native.shape)
    values = (rows * 9 + cols).astype("int16")
    if stated == "in the file":
        path, crs = write_cog(tmp_path / "sand.tif", values, native), None
    else:
        path, crs = write_cog(tmp_path / "sand.tif", values, native, crs=None), stated
    grid = make_grid(bbox=(2.97, 50.78, 3.03, 50.82), resolution=100)
    found = load_source(spec(path, crs=crs), grid, PERIOD)["sand"].values
    lon, lat = pixel_centres(grid, "EPSG:4326")
    x, y = _TO_HOMOLOSINE.transform(lon, lat)
    row = np.floor((native.boundingbox.top - y) / 250).astype(int)
    col = np.floor((x - native.boundingbox.left) / 250).astype(int)
    np.testing.assert_array_equal(found, values[row, col])


def test_a_known_corner_stands_in_a_known_cell(tmp_path):
    native = lattice()
    values = np.full(native.shape, 100, "int16")
    values[40:, 40:] = 900  # south-east of the middle, which is an inner corner of four pixels
    path = write_cog(tmp_path / "sand.tif", values, native)
    x, y = (native.boundingbox.left + 40 * 250, native.boundingbox.top - 40 * 250)
    back = Transformer.from_crs(HOMOLOSINE, "EPSG:32631", always_xy=True)
    east, north = back.transform(x + 1, y - 1)
    west, south = back.transform(x - 1, y + 1)
    grid = make_grid(bbox=(2.98, 50.78, 3.02, 50.82), resolution=10)
    found = load_source(spec(path), grid, PERIOD)["sand"].compute()
    assert found.sel(x=east + 5, y=north - 5, method="nearest").item() == 900
    assert found.sel(x=west - 5, y=south + 5, method="nearest").item() == 100


def mean_by_area(values, native, cell):
    """Mean over the polygon of a cell, each pixel with the area that it shares: exact but slow."""
    to_native = Transformer.from_crs(cell.crs.proj, HOMOLOSINE, always_xy=True)
    box = cell.boundingbox
    corners = ((box.left, box.top), (box.right, box.top), (box.right, box.bottom))
    ring = [to_native.transform(*corner) for corner in (*corners, (box.left, box.bottom))]
    polygon = shapely.Polygon(ring)
    left, bottom, right, top = polygon.bounds
    total = weight = 0.0
    origin_x, origin_y = native.boundingbox.left, native.boundingbox.top
    for row in range(int((origin_y - top) // 250), int((origin_y - bottom) // 250) + 1):
        for col in range(int((left - origin_x) // 250), int((right - origin_x) // 250) + 1):
            x, y = origin_x + 250 * col, origin_y - 250 * row
            share = polygon.intersection(shapely.box(x, y - 250, x + 250, y)).area
            total += share * float(values[row, col])
            weight += share
    return total / weight


# Near Hanoi, 76 degrees from the middle of its lobe, the projection shears cells by 25 degrees.
@pytest.mark.parametrize("place", [(3.0, 50.8), (105.85, 21.03)])
@pytest.mark.parametrize("resolution", [500, 1000])
def test_coarser_cells_get_the_mean_of_their_area(tmp_path, place, resolution):
    native = lattice(*place)
    values = np.random.default_rng(0).integers(100, 800, native.shape).astype("int16")
    path = write_cog(tmp_path / "sand.tif", values, native)
    lon, lat = place
    grid = make_grid(bbox=(lon - 0.02, lat - 0.02, lon + 0.02, lat + 0.02), resolution=resolution)
    found = load_source(spec(path), grid, PERIOD)["sand"].values
    cells = np.ndindex(*grid.shape)
    expected = np.array([mean_by_area(values, native, grid[cell]) for cell in cells])
    error = found - expected.reshape(grid.shape)
    # Neighbouring pixels differ by 200. The mean over an upright box is off by 15 to 30.
    assert np.sqrt((error**2).mean()) < (12 if resolution == 500 else 6)
    assert abs(error.mean()) < 3


def test_the_mean_does_not_depend_on_the_chunks(tmp_path):
    native = lattice()
    values = np.random.default_rng(1).integers(100, 800, native.shape).astype("int16")
    entry = spec(write_cog(tmp_path / "sand.tif", values, native))
    grid = make_grid(bbox=(2.97, 50.78, 3.03, 50.82), resolution=500)
    whole = load_source(entry, grid, PERIOD)["sand"].values
    tiled = load_source(entry, grid, PERIOD, chunks=3)["sand"]
    assert tiled.chunksizes["y"][0] == 3
    np.testing.assert_array_equal(tiled.values, whole)


def test_in_their_own_crs_coarser_cells_are_exact(tmp_path):
    native = lattice()
    values = np.random.default_rng(2).integers(100, 800, native.shape).astype("int16")
    entry = spec(write_cog(tmp_path / "sand.tif", values, native))
    grid = native.zoom_to((20, 20))
    found = load_source(entry, grid, PERIOD)["sand"].values
    np.testing.assert_allclose(found, values.reshape(20, 4, 20, 4).mean((1, 3)), rtol=1e-6)


def test_files_as_paths_are_refused(tmp_path):
    path = write_cog(tmp_path / "sand.tif", np.full((80, 80), 1, "int16"), lattice())
    with pytest.raises(CatalogError, match="line 9: soil has paths; give one file per variable"):
        load(spec(path, paths=(str(path),)), lattice(), PERIOD)


def test_units_are_converted(tmp_path):
    native = lattice()
    sand = write_cog(tmp_path / "sand.tif", np.full(native.shape, 35, "uint8"), native, nodata=255)
    bulk = write_cog(tmp_path / "bdod.tif", np.full(native.shape, 1410, "int16"), native)
    entry = spec(
        sand,
        provides=("sand", "bdod"),
        assets={"sand": str(sand), "bdod": str(bulk)},
        units={"sand": "percent", "bdod": "kg/m3"},
        nodata=None,
    )
    grid = make_grid(bbox=(2.99, 50.79, 3.01, 50.81), resolution=100)
    ds = load_source(entry, grid, PERIOD)
    np.testing.assert_allclose(ds["sand"].values, 350)
    np.testing.assert_allclose(ds["bdod"].values, 141, rtol=1e-6)
    assert ds["sand"].attrs["units"] == "g kg-1"


@pytest.mark.parametrize(("name", "most"), [("sand", 1000), ("clay", 1000), ("bdod", 265)])
def test_the_providers_integers_survive_on_disk(name, most):
    counts = np.arange(1, most + 1, dtype="float32")
    np.testing.assert_array_equal(get_variable(name).packing.encode(counts), counts)


@pytest.mark.parametrize("resolution", [100, 1000])
def test_missing_pixels_stay_missing(tmp_path, resolution):
    native = lattice()
    values = np.full(native.shape, 400, "int16")
    values[:, 40:] = -32768
    path = write_cog(tmp_path / "sand.tif", values, native)
    grid = make_grid(bbox=(2.97, 50.78, 3.03, 50.82), resolution=resolution)
    found = load_source(spec(path), grid, PERIOD)["sand"].values
    assert 0.3 < np.isnan(found).mean() < 0.7
    np.testing.assert_allclose(found[np.isfinite(found)], 400)


def test_mistakes(tmp_path):
    native = lattice()
    path = write_cog(tmp_path / "sand.tif", np.full(native.shape, 4000, "int16"), native)
    grid = make_grid(bbox=(2.99, 50.79, 3.01, 50.81), resolution=100)
    with pytest.raises(
        SchemaError, match=r"sand in soil \(.*line 9\): found 4000, expected 0 to 1000"
    ):
        load_source(spec(path), grid, PERIOD).compute()
    with pytest.raises(CatalogError, match=r"line 9: options\.depth of soil: unknown key"):
        load(spec(path, options={"depth": "0-5"}), grid, PERIOD)
    with pytest.raises(CatalogError, match=r"line 9: units\.sand of soil is missing"):
        load(spec(path, units={}), grid, PERIOD)
    with pytest.raises(CatalogError, match=r"line 9: assets\.sand of soil is missing"):
        load(spec(path, assets={}), grid, PERIOD)
    with pytest.raises(CatalogError, match="native_resolution of soil is missing"):
        load(spec(path, native_resolution=0.0), grid, PERIOD)
    elsewhere = make_grid(bbox=(105.0, 20.0, 105.1, 20.1), resolution=1000)
    with pytest.raises(NoDataError, match=r"sand\.tif .* they do not overlap"):
        load(spec(path), elsewhere, PERIOD)


@pytest.mark.shared
def test_real_soilgrids_2017(shared):
    folder = shared / "data/real/soilgrids_2017_lombardy"
    entry = spec(
        "",
        provides=("sand", "clay", "bdod"),
        assets={
            "sand": str(folder / "SNDPPT_M_sl1_250m.tif"),
            "clay": str(folder / "CLYPPT_M_sl1_250m.tif"),
            "bdod": str(folder / "BLDFIE_M_sl1_250m.tif"),
        },
        units={"sand": "percent", "clay": "percent", "bdod": "kg/m3"},
        nodata=None,
    )
    grid = make_grid(bbox=(9.0, 45.2, 9.1, 45.3), resolution=100)
    ds = load_source(entry, grid, PERIOD).compute()
    lon, lat = pixel_centres(grid, "EPSG:4326")
    with rasterio.open(folder / "SNDPPT_M_sl1_250m.tif") as src:
        col, row = (np.floor(part).astype(int) for part in ~src.transform @ (lon, lat))
        raw = src.read(1)[row, col]
    expected = np.where(raw == 255, np.nan, raw * 10.0)
    np.testing.assert_array_equal(ds["sand"].values, expected)
    # The Po plain: loam.
    assert 300 < float(ds["sand"].mean()) < 500
    assert 100 < float(ds["clay"].mean()) < 300
    assert 110 < float(ds["bdod"].mean()) < 150


@pytest.mark.shared
def test_real_soilgrids_2017_is_missing_over_lakes_and_averaged_around_them(shared):
    """Lake Como: 255 in the texture, -32768 in the bulk density, both only missing values."""
    folder = shared / "data/real/soilgrids_2017_lombardy"
    names = {"clay": "CLYPPT_M_sl1_250m.tif", "bdod": "BLDFIE_M_sl1_250m.tif"}
    entry = spec(
        "",
        provides=("clay", "bdod"),
        assets={name: str(folder / file) for name, file in names.items()},
        units={"clay": "percent", "bdod": "kg/m3"},
        nodata=None,
    )
    grid = make_grid(bbox=(9.2, 45.9, 9.35, 46.05), resolution=1000)
    ds = load_source(entry, grid, PERIOD).compute()
    fine = grid.zoom_to(tuple(40 * n for n in grid.shape))
    lon, lat = pixel_centres(fine, "EPSG:4326")
    for name, (scale, fill) in {"clay": (10.0, 255), "bdod": (0.1, -32768)}.items():
        with rasterio.open(folder / names[name]) as src:
            col, row = (np.floor(part).astype(int) for part in ~src.transform @ (lon, lat))
            raw = src.read(1)[row, col].astype(float)
        raw[raw == fill] = np.nan
        blocks = raw.reshape(grid.shape.y, 40, grid.shape.x, 40).swapaxes(1, 2)
        blocks = blocks.reshape(*grid.shape, -1) * scale
        known = np.isfinite(blocks).mean(-1)
        is_clear = abs(known - 0.5) > 0.05
        np.testing.assert_array_equal(
            np.isfinite(ds[name].values)[is_clear], (known > 0.5)[is_clear]
        )
        both = is_clear & (known > 0.5)
        assert 50 < both.sum() < both.size
        tolerance = 0.02 * np.nanmean(blocks)
        np.testing.assert_allclose(
            ds[name].values[both], np.nanmean(blocks[both], axis=-1), atol=tolerance
        )
