"""VIIRS tiles: files of the true layout, corners in their cells, satellites, versions, faults."""

import dask
import h5py
import numpy as np
import pandas as pd
import pystac
import pytest
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec, StacQuery
from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.sources import load_source
from smgrid.sources.ndvi import load_viirs
from smgrid.sources.viirs import Granule, sinusoidal_grid
from smgrid.windows import Period, composite_calendar
from tests.builders import write_catalog

nan = np.nan
PERIOD = Period.parse(("2024-01-01", "2024-01-31"))
# Four tiles meet at 60 N 0 E, where x = R longitude cos(latitude) is 0 and rows are 1/240 degree.
GRID = GeoBox.from_bbox((-0.02, 59.99, 0.02, 60.01), "EPSG:4326", resolution=0.001)
GOOD = 1 << 2 | 1 << 6 | 1 << 11
FIELDS = {
    "500 m 16 days NDVI": ("i2", -15000),
    "500 m 16 days VI Quality": ("u2", 65535),
    "500 m 16 days pixel reliability": ("i1", -4),
}


def write(
    folder, h, v, ndvi, *, day="2024001", product="VNP13A1", made="2024020000000", quality=GOOD,
    reliability=0, group="VIIRS_Grid_16Day_VI_500m", shape=(2400, 2400), collection="002",
):  # fmt: skip
    """Write the 40 pixels around the corner of a tile that lies at 60 N 0 E."""
    path = folder / f"{product}.A{day}.h{h:02d}v{v:02d}.{collection}.{made}.h5"
    rows, cols = (slice(2360, 2400) if v == 2 else slice(40)), slice(40)
    if h == 17:
        cols = slice(2360, 2400)
    with h5py.File(path, "w") as file:
        for (name, (dtype, fill)), values in zip(
            FIELDS.items(), (ndvi, quality, reliability), strict=True
        ):
            field = file.create_dataset(
                f"HDFEOS/GRIDS/{group}/Data Fields/{name}",
                shape,
                dtype,
                chunks=(120, 120),
                fillvalue=fill,
                compression="gzip",
            )
            field[rows, cols] = values
            field.attrs["scale_factor"] = 10000.0  # the products mean a divisor
            field.attrs["_FillValue"] = np.array([-13000, -15000], "i2")
        # Text that places the tile elsewhere: nothing may read it.
        struct = "GridName=x\nUpperLeftPointMtrs=(0.000000,0.000000)\nXDim=17\n"
        file["HDFEOS INFORMATION/StructMetadata.0"] = np.bytes_(struct)
    return path


def four_tiles(folder, values, **kwargs):
    """Write the tiles around the corner, 40 by 40 pixels each of an array of 80 by 80."""
    for v, rows in ((2, slice(40)), (3, slice(40, 80))):
        for h, cols in ((17, slice(40)), (18, slice(40, 80))):
            write(folder, h, v, values[rows, cols], **kwargs)


def spec(folder, **changes):
    fields = {
        "name": "viirs",
        "loader": "smgrid.sources.ndvi:load_viirs",
        "provides": ("ndvi", "ndvi_filled"),
        "paths": (f"{folder}/*.h5",),
        "assets": {
            "ndvi": "500 m 16 days NDVI",
            "reliability": "500 m 16 days pixel reliability",
            "quality": "500 m 16 days VI Quality",
        },
        "scale": {"ndvi": 1e-4},
        "native_resolution": 463.31271653,
        "options": {"fill_days": 0},
        "origin": "test.yml, line 23",
    }
    return SourceSpec(**(fields | changes))


def pixel_of(grid):
    """Return row and column from the corner, by the formula of the sinusoidal projection."""
    y, x = (axis.values for axis in grid.coordinates.values())
    lon, lat = np.meshgrid(x, y)
    row = np.floor((60 - lat) * 240).astype(int)
    col = np.floor(lon * np.cos(np.radians(lat)) * 240).astype(int)
    return row, col


def series(entry, period=PERIOD):
    return load_source(entry, GRID, period)["ndvi"].values[:, 0, 0]


@pytest.mark.parametrize("chunks", [512, 7])
def test_every_cell_gets_the_pixel_its_centre_lies_in(tmp_path, chunks):
    values = np.random.default_rng(0).integers(-2000, 10000, (80, 80))
    four_tiles(tmp_path, values)
    row, col = pixel_of(GRID)
    ds = load_source(spec(tmp_path), GRID, PERIOD, chunks=chunks)
    found = ds["ndvi"].values[0]
    np.testing.assert_allclose(found, values[row + 40, col + 40] * 1e-4, rtol=1e-5, atol=1e-6)
    assert ds["ndvi"].attrs["composite_days"] == 16
    assert len(np.unique(row)) > 4
    assert len(np.unique(col)) > 4


def test_the_grid_of_pixels():
    whole = sinusoidal_grid()
    # As the item of tile h11v05 in the archive states it.
    tile = whole[5 * 2400 : 6 * 2400, 11 * 2400 : 12 * 2400]
    stated = (463.3127165279169, 0, -7783653.637667, 0, -463.3127165279167, 4447802.078667)
    np.testing.assert_allclose(list(tile.affine)[:6], stated, atol=1e-5)
    # The poles and the antimeridian on the equator are where a sphere of that radius has them.
    half = np.pi * 6371007.181
    np.testing.assert_allclose(whole.boundingbox, (-half, -half / 2, half, half / 2), atol=0.01)


def test_composites_of_both_satellites_every_eight_days(tmp_path):
    for number, (day, product) in enumerate(
        [("2024001", "VNP13A1"), ("2024009", "VJ113A1"), ("2024017", "VNP13A1")]
    ):
        four_tiles(tmp_path, np.full((80, 80), 1000 * (number + 2)), day=day, product=product)
    ds = load_source(spec(tmp_path), GRID, PERIOD)
    assert ds.indexes["date"].equals(composite_calendar(PERIOD))
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], [0.2, 0.3, 0.4, nan], rtol=1e-6)


def test_another_satellite_fills_what_the_first_did_not_see(tmp_path):
    values = np.full((80, 80), 3000)
    cloudy = np.where(np.arange(80)[:, None] < 40, 9, 0) + np.zeros((80, 80), int)
    for v, rows in ((2, slice(40)), (3, slice(40, 80))):
        for h in (17, 18):
            write(tmp_path, h, v, 3000, reliability=cloudy[rows, :40])
    four_tiles(tmp_path, values + 2000, product="VJ113A1")
    found = load_source(spec(tmp_path), GRID, PERIOD)["ndvi"].values[0]
    row, _ = pixel_of(GRID)
    np.testing.assert_allclose(found, np.where(row < 0, 0.5, 0.3), rtol=1e-6)


def test_fills_ranks_and_bits(tmp_path):
    column = np.arange(40)
    ndvi = np.full((40, 40), 5000)
    ndvi[:, 0], ndvi[:, 1] = -13000, -15000
    rank = np.where(column < 14, np.maximum(column - 2, 0), 0)
    rank[14], rank[15] = -1, -4
    quality = np.where(column == 16, GOOD | 1 << 15, GOOD)
    quality[17], quality[18] = GOOD | 1 << 8, 65535
    write(tmp_path, 18, 3, ndvi, reliability=rank[None], quality=quality[None])
    grid = GeoBox.from_bbox((0, 59.99, 0.18, 60), "EPSG:4326", resolution=0.002)
    found = load_source(spec(tmp_path), grid, PERIOD)["ndvi"].values[0]
    _, col = pixel_of(grid)
    # Ranks 0 to 3 stand in columns 2 to 5, a pixel beside a cloud in 17.
    used = np.isin(col, [2, 3, 4, 5, 17]) | (col > 18)
    np.testing.assert_array_equal(np.isfinite(found), used)
    entry = spec(tmp_path, options={"fill_days": 0, "accept_reliability": [10], "reject": []})
    found = load_source(entry, grid, PERIOD)["ndvi"].values[0]
    np.testing.assert_array_equal(np.isfinite(found), col == 12)


def test_the_newest_version_of_a_granule_counts(tmp_path):
    values = np.full((80, 80), 3000)
    four_tiles(tmp_path, values, made="2024030000000")
    four_tiles(tmp_path, values + 1000, made="2025030000000")
    four_tiles(
        tmp_path, values + 3000, made="2026030000000", collection="001", group="NPP_Grid_16Day_VI"
    )
    np.testing.assert_allclose(series(spec(tmp_path))[0], 0.4, rtol=1e-6)


def test_gaps_are_filled_and_held(tmp_path):
    for day, value in (("2023361", 2000), ("2024009", 4600), ("2024025", 7800)):
        four_tiles(tmp_path, np.full((80, 80), value), day=day)
    ds = load_source(spec(tmp_path, options={"fill_days": 16}), GRID, PERIOD)
    np.testing.assert_allclose(ds["ndvi"].values[:, 0, 0], [0.3, 0.46, 0.62, 0.78], rtol=1e-5)
    assert ds["ndvi_filled"].values[:, 0, 0].tolist() == [1, 0, 1, 0]
    assert ds["observed"].values.tolist() == [False, True, False, True]
    held = series(spec(tmp_path, options={"fill_days": 16, "fill": "hold"}))
    np.testing.assert_allclose(held, [0.2, 0.46, 0.46, 0.78], rtol=1e-6)


def test_only_files_under_the_grid_are_read_and_only_when_computed(tmp_path):
    four_tiles(tmp_path, np.full((80, 80), 3000))
    (tmp_path / "VNP13A1.A2024001.h30v05.002.2024020000000.h5").write_bytes(b"not HDF5")

    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        ds = load_viirs(spec(tmp_path), GRID, PERIOD, chunks=8)
    assert ds["ndvi"].chunksizes["y"][0] == 8
    assert np.isfinite(ds["ndvi"].values[0]).all()


def item(name, assets, start="2024-01-01"):
    begin = pd.Timestamp(start)
    made = pystac.Item(
        name,
        geometry={
            "type": "Polygon",
            "coordinates": [[[0, 50], [15.6, 50], [20, 60], [0, 60], [0, 50]]],
        },
        bbox=[0, 50, 20, 60],
        datetime=None,
        start_datetime=begin.to_pydatetime(),
        end_datetime=(begin + pd.Timedelta(16, "D") - pd.Timedelta(1, "s")).to_pydatetime(),
        properties={},
    )
    for key, href in assets.items():
        made.add_asset(key, pystac.Asset(str(href)))
    return made


def test_granules_of_a_collection_are_fetched_once(tmp_path, file_server, cache):
    path = write(file_server.folder, 18, 3, 4200)
    assets = {
        "browse": f"{file_server.url}/BROWSE.{path.stem}.1.jpg",
        "s3": f"s3://bucket/{path.name}",
        "002/VNP13A1": f"{file_server.url}/{path.name}",
        "metadata": f"{file_server.url}/{path.name}.cmr.xml",
    }
    href = write_catalog(tmp_path / "stac", "VNP13A1_002", [item(path.stem, assets)])
    entry = spec(tmp_path, paths=(), stac=StacQuery(str(href), "VNP13A1_002"))
    grid = GeoBox.from_bbox((0, 59.99, 0.02, 60), "EPSG:4326", resolution=0.001)
    ds = load_source(entry, grid, PERIOD, chunks=6)
    assert file_server.log() == []
    np.testing.assert_allclose(ds["ndvi"].values[0], 0.42, rtol=1e-6)
    assert [asked["path"] for asked in file_server.log()] == [f"/{path.name}"]


def test_an_item_without_the_file_is_named(tmp_path):
    bare = item("bare", {"s3": "s3://bucket/VNP13A1.A2024001.h18v03.002.2024020000000.h5"})
    href = write_catalog(tmp_path / "stac", "VNP13A1_002", [bare])
    entry = spec(tmp_path, paths=(), stac=StacQuery(str(href), "VNP13A1_002"))
    grid = GeoBox.from_bbox((0, 59.99, 0.02, 60), "EPSG:4326", resolution=0.001)
    with pytest.raises(SourceError, match="bare has no asset that is a VIIRS 500 m vegetation"):
        load_viirs(entry, grid, PERIOD)


def test_names():
    granule = Granule.parse("https://host/a/VJ113A1.A2022097.h11v05.001.2022113080900.h5?token=x")
    assert (granule.product, granule.h, granule.v) == ("VJ113A1", 11, 5)
    assert granule.start == pd.Timestamp("2022-04-07")
    for name in ("VNP13A2.A2022097.h11v05.001.2022113080900.h5", "VNP13A1.A2022097.h11v05.h5"):
        with pytest.raises(SourceError, match=f"{name} is not named like a VIIRS"):
            Granule.parse(f"{name}?token=secret")


def test_mistakes(tmp_path):
    write(tmp_path, 18, 3, 3000)
    with pytest.raises(CatalogError, match=r"line 23: options\.fill of viirs is 'random'; use int"):
        load_viirs(spec(tmp_path, options={"fill": "random"}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"line 23: options\.fills of viirs: unknown key"):
        load_viirs(spec(tmp_path, options={"fills": 1}), GRID, PERIOD)
    with pytest.raises(NoDataError, match="line 23: viirs has no composite that starts in 2025"):
        load_viirs(spec(tmp_path), GRID, Period.parse("2025"))
    far = GeoBox.from_bbox((30, 40, 30.1, 40.1), "EPSG:4326", resolution=0.01)
    with pytest.raises(NoDataError, match=r"viirs has no tile of 30\.000\..* \(it has h18v03\)"):
        load_viirs(spec(tmp_path), far, PERIOD)
    write(tmp_path, 18, 3, 3000, day="2024004")
    with pytest.raises(SourceError, match=r"A2024004.* starts on 2024-01-04, which is no day of"):
        load_viirs(spec(tmp_path), GRID, PERIOD)


@pytest.mark.parametrize(
    ("changes", "scale", "error", "message"),
    [
        ({"ndvi": 5000}, {}, SchemaError, "ndvi in .*h18v03.* found 5000, expected -1 to 1"),
        ({"ndvi": 20000}, {"ndvi": 1e-4}, SchemaError, "found 2, expected -1 to 1"),
        (
            {"ndvi": 5000, "shape": (1200, 1200)},
            {"ndvi": 1e-4},
            SourceError,
            r"has the shape \(1200, 1200\), expected \(2400, 2400\)",
        ),
    ],
)
def test_what_is_no_such_file_fails_when_read(tmp_path, changes, scale, error, message):
    write(tmp_path, 18, 3, **changes)
    with pytest.raises(error, match=message):
        load_source(spec(tmp_path, scale=scale), GRID, PERIOD).compute()


def test_a_field_that_is_not_there(tmp_path):
    write(tmp_path, 18, 3, 5000)
    entry = spec(tmp_path, assets={"ndvi": "NDVI"})
    with pytest.raises(SourceError, match=r"h18v03.* cannot be read .*NDVI.*fetch it again"):
        load_source(entry, GRID, PERIOD).compute()
