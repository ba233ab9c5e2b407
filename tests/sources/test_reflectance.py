"""Clear NDVI from reflectances: masks, doubtful classes, composites, files of different grids."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.catalog import SourceSpec
from smgrid.errors import CatalogError, NoDataError, SourceError
from smgrid.grid import grid_coords
from smgrid.sources import load_source
from smgrid.sources.ndvi import load_reflectance
from smgrid.sources.reflectance import MASKS, composite
from smgrid.windows import Period, composite_calendar

nan = np.nan
TIMES = pd.to_datetime(["2024-01-01 10:50", "2024-01-06 10:50", "2024-01-11 10:50"])
PERIOD = Period.parse(("2024-01-01", "2024-01-24"))
FINE = GeoBox.from_bbox((500_000, 5_600_000, 500_200, 5_600_200), "EPSG:32631", resolution=10)
COARSE = FINE.zoom_out(2)
GRID = FINE.zoom_out(10)
RED, NIR = 1000, 3000  # NDVI 0.5


def write(path, geobox, times=TIMES, **bands):
    """Write a stack as its provider does: counts, packing as attributes, a textual CRS."""
    size = (len(times), *geobox.shape)
    variables = {}
    for name, values in bands.items():
        is_mask = name in ("SCL", "pixel_qa")
        data = np.broadcast_to(values, size).astype("uint8" if name == "SCL" else "uint16")
        attrs = {"scale_factor": 1 if is_mask else "0.0001", "_FillValue": data.dtype.type(0)}
        variables[name] = (("timestamp", "y", "x"), data, attrs)
    coords = {name: c for name, c in grid_coords(geobox).items() if name != "spatial_ref"}
    ds = xr.Dataset(variables, coords=coords | {"timestamp": times})
    ds.attrs["crs"] = "+init=epsg:32631"
    ds.to_netcdf(path)
    return path


def spec(*paths, mask="sentinel2-scl", **changes):
    fields = {
        "name": "stack",
        "loader": "smgrid.sources.ndvi:load_reflectance",
        "provides": ("ndvi",),
        "paths": tuple(str(path) for path in paths),
        "assets": {"red": "B04", "nir": "B08", "mask": "SCL", "time": "timestamp"},
        "native_resolution": 10.0,
        "options": {"mask": mask, "fill_days": 0},
        "origin": "test.yml, line 13",
    }
    return SourceSpec(**(fields | changes))


def one_file(tmp_path, scl=4, red=RED, nir=NIR, **kwargs):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nc"
    return spec(write(path, FINE, B04=red, B08=nir, SCL=scl), **kwargs)


def ndvi(entry, period=PERIOD, grid=GRID):
    return load_source(entry, grid, period)["ndvi"].values


def test_index_scale_and_offset(tmp_path):
    np.testing.assert_allclose(ndvi(one_file(tmp_path))[0], 0.5, rtol=1e-6)
    # Processing baseline 4.00 of Sentinel-2 adds 1000 to every count.
    entry = one_file(
        tmp_path,
        red=RED + 1000,
        nir=NIR + 1000,
        scale={"red": 1e-4, "nir": 1e-4},
        offset={"red": -0.1, "nir": -0.1},
    )
    np.testing.assert_allclose(ndvi(entry)[0], 0.5, rtol=1e-5)


def test_bands_and_mask_in_files_of_their_own_grids(tmp_path):
    scl = np.full((3, *COARSE.shape), 4)
    scl[:, :5, :5] = 9  # the first cell
    fine = write(tmp_path / "10m.nc", FINE, B04=RED, B08=NIR)
    coarse = write(tmp_path / "20m.nc", COARSE, times=TIMES + pd.Timedelta(20, "s"), SCL=scl)
    found = ndvi(spec(fine, coarse))
    np.testing.assert_array_equal(np.isnan(found[0]), [[True, False], [False, False]])


def test_a_cell_needs_a_quarter_of_its_pixels_clear(tmp_path):
    scl = np.full((3, *FINE.shape), 4)
    scl[:, :7, :10] = scl[:, 7, :5] = 9  # leaves 25 of 100 pixels of the first cell
    scl[:, 10:17, :10] = scl[:, 17, :6] = 9  # and 24 of the one below
    nir = np.full((3, *FINE.shape), NIR)
    nir[scl == 9] = RED
    found = ndvi(one_file(tmp_path, scl=scl, nir=nir))[0]
    np.testing.assert_allclose(found, [[0.5, 0.5], [nan, 0.5]], rtol=1e-6)


def test_doubtful_pixels_count_unless_the_cell_has_clouds(tmp_path):
    scl = np.full((3, *FINE.shape), 7)
    scl[:, 0, :9] = 9  # 9 of the 100 pixels of the first cell
    scl[:, 0, 10:20] = 9  # 10 of the second
    found = ndvi(one_file(tmp_path, scl=scl))[0]
    np.testing.assert_allclose(found, [[0.5, nan], [0.5, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("scl", [0, 1, 2, 3, 8, 9, 10, 11])
def test_classes_that_are_never_used(tmp_path, scl):
    assert np.isnan(ndvi(one_file(tmp_path, scl=scl))).all()


@pytest.mark.parametrize("red", [0, 5, 65515, 20000])
def test_reflectances_that_no_surface_has(tmp_path, red):
    assert np.isnan(ndvi(one_file(tmp_path, red=red))).all()


@pytest.mark.parametrize(
    ("value", "is_clear"),
    # USGS LSDS-1368: 322 clear, 324 water, 328 shadow, 336 snow, 352 cloud of low confidence,
    # 386 clear of medium confidence, 480 cloud; 834, 898 clear but cirrus; 1346 occluded; 1 fill.
    [
        (322, 1),
        (324, 1),
        (328, 0),
        (336, 0),
        (352, 0),
        (386, 1),
        (480, 0),
        (834, 0),
        (898, 0),
        (1346, 0),
        (1, 0),
        (0, 0),
    ],
)
def test_landsat_collection_1(value, is_clear):
    assert (MASKS["landsat-pixel-qa"](np.array([value])) == 0).item() == is_clear


@pytest.mark.parametrize(
    ("value", "is_clear"),
    # USGS LSDS-1619: 21824 clear, 21952 water, 21762 dilated cloud, 22280 cloud, 23888 shadow,
    # 30048 snow, 54596 cirrus; 5440 clear of Landsat 7; 1 fill.
    [
        (21824, 1),
        (21952, 1),
        (21762, 0),
        (22280, 0),
        (23888, 0),
        (30048, 0),
        (54596, 0),
        (5440, 1),
        (1, 0),
        (0, 0),
    ],
)
def test_landsat_collection_2(value, is_clear):
    assert (MASKS["landsat-qa-pixel"](np.array([value])) == 0).item() == is_clear


@pytest.mark.parametrize(
    ("coding", "value", "cure"),
    [
        ("sentinel2-scl", 322, "scene classes are 0 to 11"),
        ("landsat-pixel-qa", 21824, "for Collection 2 use landsat-qa-pixel"),
        ("landsat-qa-pixel", 322, "for Collection 1 use landsat-pixel-qa"),
    ],
)
def test_a_mask_of_another_coding_is_refused(tmp_path, coding, value, cure):
    path = write(tmp_path / "a.nc", FINE, B04=RED, B08=NIR, pixel_qa=value)
    assets = {"red": "B04", "nir": "B08", "mask": "pixel_qa", "time": "timestamp"}
    with pytest.raises(SourceError, match=rf"stack \(test\.yml, line 13\): .* {value}; {cure}"):
        ndvi(spec(path, mask=coding, assets=assets))


def clear_series(values, times):
    data = np.asarray(values, "float32")[:, None, None]
    return xr.DataArray(data, dims=("time", "y", "x"), coords={"time": times}).chunk(time=1)


def test_composite_is_the_median_of_eight_days():
    stamps = "2023-12-27 2024-01-01T10:00 2024-01-03 2024-01-08T23:59 2024-01-09 2024-01-10"
    times = pd.to_datetime(stamps.split(), format="ISO8601")
    slots = composite_calendar(("2023-12-19", "2024-01-17"))
    found = composite(clear_series([0.9, 0.1, 0.7, 0.2, nan, 0.4], times), slots, days=8)
    # 12-27 to 01-03 (across New Year), 01-01 to 01-08, 01-09 to 01-16, then nothing.
    np.testing.assert_allclose(found.values.ravel(), [nan, 0.7, 0.2, 0.4, nan], rtol=1e-6)
    assert found.indexes["date"].equals(slots)


def test_maximum_of_eight_days():
    times = pd.to_datetime(["2024-01-01", "2024-01-03", "2024-01-05", "2024-01-10"])
    slots = composite_calendar(("2024-01-01", "2024-01-17"))
    found = composite(clear_series([0.1, nan, 0.7, nan], times), slots, days=8, statistic="max")
    np.testing.assert_allclose(found.values.ravel(), [0.7, nan, nan], rtol=1e-6)


def test_composite_equals_numpy():
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=60, freq="37h")
    values = rng.random((60, 4, 3)).astype("float32")
    values[rng.random(values.shape) < 0.4] = nan
    da = xr.DataArray(values, dims=("time", "y", "x"), coords={"time": times}).chunk(y=2)
    slots = composite_calendar(("2024-01-01", "2024-03-31"))
    found = composite(da, slots, days=8).values
    for number, slot in enumerate(slots):
        inside = values[(times >= slot) & (times < slot + pd.Timedelta(8, "D"))]
        masked = np.ma.median(np.ma.masked_invalid(inside), axis=0).filled(nan)
        np.testing.assert_allclose(found[number], masked, rtol=1e-6)


def test_gaps_are_filled_marked_and_described(tmp_path):
    times = pd.to_datetime(["2024-01-02 10:50", "2024-01-18 10:50"])
    nir = np.array([3000, 9000])[:, None, None]
    path = write(tmp_path / "a.nc", FINE, times=times, B04=RED, B08=nir, SCL=4)
    options = {"mask": "sentinel2-scl", "fill_days": 16}
    ds = load_source(spec(path, provides=("ndvi", "ndvi_filled"), options=options), GRID, PERIOD)
    np.testing.assert_allclose(ds["ndvi"][:, 0, 0], [0.5, 0.65, 0.8], rtol=1e-6)
    assert ds["ndvi_filled"][:, 0, 0].values.tolist() == [0, 1, 0]
    assert ds["ndvi"].attrs["composite_days"] == 8
    assert ds["ndvi"].chunksizes["date"] == (3,)
    one = Period.parse(("2024-01-09", "2024-01-16"))
    alone = load_source(spec(path, options=options), GRID, one)
    np.testing.assert_allclose(alone["ndvi"], 0.65, rtol=1e-6)  # neighbours beyond the period


def test_the_filled_share_of_a_cell_is_what_its_clearest_acquisition_did_not_see(tmp_path):
    scl = np.full((3, *FINE.shape), 4)
    scl[0, :7, :10] = 9  # the first day leaves 30 of the 100 pixels of the first cell
    scl[1, 7:, :10] = 9  # the second the other 70
    scl[:2, :10, 10:] = 9  # nothing of the second cell
    scl[:2, 10:, 10:] = 7  # doubtful, but no cloud
    scl[0, 10:, :10], scl[1, 10:, :10] = 11, 2  # snow, dark
    scl[1, 12:, :10] = 4  # 80 of 100
    scl[2] = 4
    entry = one_file(
        tmp_path,
        scl=scl,
        provides=("ndvi", "ndvi_filled"),
        options={"mask": "sentinel2-scl", "fill_days": 8},
    )
    filled = load_source(entry, GRID, PERIOD)["ndvi_filled"]
    np.testing.assert_allclose(filled[0], [[0.3, np.nan], [0.2, 0]], atol=1e-6)  # nothing before
    assert (filled[1] == 0).all()
    assert (filled[2] == 1).all()
    assert filled.dtype == "float32"


def test_a_cell_that_is_neither_observed_nor_filled_has_no_share(tmp_path):
    scl = np.full((3, *FINE.shape), 4)
    scl[:, :10, :10] = 9
    ds = load_source(one_file(tmp_path, scl=scl, provides=("ndvi", "ndvi_filled")), GRID, PERIOD)
    assert np.isnan(ds["ndvi"][0, 0, 0])
    np.testing.assert_array_equal(np.isnan(ds["ndvi_filled"]), np.isnan(ds["ndvi"]))


def test_a_bridge_and_causal_filling(tmp_path):
    options = {"mask": "sentinel2-scl", "fill_days": 8, "fill": "hold"}
    bridge = {"slope": 1.2, "intercept": -0.05, "rmse": 0.03}
    entry = one_file(tmp_path, options=options | {"bridge": bridge})
    ds = load_reflectance(entry, GRID, Period.parse(("2023-12-27", "2024-01-24")))
    # The first composite begins before the first acquisition and holds one of its days.
    np.testing.assert_allclose(ds["ndvi"][:, 0, 0], [0.55, 0.55, 0.55, 0.55], rtol=1e-6)
    assert ds["ndvi"].attrs["bridge_rmse"] == 0.03


def test_chunks_do_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    scl = rng.choice([4, 7, 9], (3, *FINE.shape), p=[0.6, 0.2, 0.2])
    entry = one_file(tmp_path, scl=scl, nir=rng.integers(2000, 6000, scl.shape))
    whole = load_source(entry, GRID, PERIOD)["ndvi"]
    tiled = load_source(entry, GRID, PERIOD, chunks=1)["ndvi"]
    assert tiled.chunksizes["x"] == (1, 1)
    np.testing.assert_array_equal(whole.values, tiled.values)


def test_a_grid_finer_than_the_pixels_takes_them(tmp_path):
    nir = np.broadcast_to(np.arange(2000, 6000, 10).reshape(FINE.shape), (3, *FINE.shape))
    grid = FINE.zoom_to((40, 40))
    found = ndvi(one_file(tmp_path, nir=nir), grid=grid)[0]
    expected = (nir[0] - RED) / (nir[0] + RED)
    np.testing.assert_allclose(found, expected.repeat(2, 0).repeat(2, 1), rtol=1e-5)


def test_every_acquisition_needs_its_mask(tmp_path):
    fine = write(tmp_path / "10m.nc", FINE, B04=RED, B08=NIR)
    late = write(tmp_path / "20m.nc", COARSE, times=TIMES + pd.Timedelta(61, "s"), SCL=4)
    with pytest.raises(SourceError, match="3 of 3 acquisitions have no mask within a minute"):
        load_reflectance(spec(fine, late), GRID, PERIOD)


def test_mistakes(tmp_path):
    entry = one_file(tmp_path)
    with pytest.raises(CatalogError, match=r"line 13: options\.mask of stack is missing; use sen"):
        load_reflectance(one_file(tmp_path, options={}), GRID, PERIOD)
    with pytest.raises(CatalogError, match=r"line 13: options\.filling of stack: unknown key"):
        load_reflectance(one_file(tmp_path, options={"filling": 3}), GRID, PERIOD)
    assets = {**entry.assets, "nir": "B8A"}
    with pytest.raises(SourceError, match="B8A: none of its files has a variable of that name"):
        load_reflectance(one_file(tmp_path, assets=assets), GRID, PERIOD)
    with pytest.raises(NoDataError, match="holds 2024-01-01 to 2024-01-11, nothing in 2025"):
        load_reflectance(entry, GRID, Period.parse("2025"))
    nir = write(tmp_path / "nir.nc", COARSE, B08=NIR)
    red = write(tmp_path / "red.nc", FINE, B04=RED, SCL=4)
    with pytest.raises(SourceError, match="red and nir lie on different grids"):
        load_reflectance(spec(red, nir), GRID, PERIOD)


@pytest.mark.shared
def test_real_sentinel2_of_flanders(shared):
    folder = shared / "data/real/colocated_worldcereal/00002806639B424A"
    options = {"mask": "sentinel2-scl", "fill_days": 64}
    entry = spec(folder / "S2_L2A_*.nc", options=options, provides=("ndvi", "ndvi_filled"))
    box = (501_360, 5_629_040, 502_000, 5_629_680)
    grid = GeoBox.from_bbox(box, "EPSG:32631", resolution=80, tight=True)
    ds = load_source(entry, grid, Period.parse(("2017-11-01", "2018-10-31"))).compute()
    series = ds["ndvi"].mean(("y", "x")).to_series()
    assert ds["ndvi"].isnull().mean() == 0
    assert 0.3 < series.min() < series.max() < 0.85
    # Winter cover of green fields, a trough when summer crops are sown, maize in August.
    assert series["2018-01"].mean() > 0.6
    assert 0.35 < series["2018-05-09":"2018-05-25"].mean() < 0.5
    assert series["2018-06-18":"2018-07-12"].mean() > series["2018-05-17"] + 0.08
    observed = ds["ndvi"].where(ds["ndvi_filled"] < 1)
    assert 0.5 < float(observed.notnull().mean()) < 0.9
    assert 0 < float((ds["ndvi_filled"] == 0).mean()) < float(observed.notnull().mean())


@pytest.mark.shared
def test_real_landsat_of_flanders(shared):
    folder = shared / "data/real/colocated_worldcereal/000028085BF08E7E"
    assets = {"red": "B04", "nir": "B05", "mask": "pixel_qa", "time": "timestamp"}
    entry = spec(
        folder / "L8_SR_*.nc",
        mask="landsat-pixel-qa",
        assets=assets,
        options={"mask": "landsat-pixel-qa", "fill_days": 0},
    )
    box = (526_140, 5_669_560, 526_780, 5_670_200)
    grid = GeoBox.from_bbox(box, "EPSG:32631", resolution=80, tight=True)
    ds = load_source(entry, grid, Period.parse(("2018-08-01", "2019-11-30"))).compute()
    values = ds["ndvi"].values
    assert 5 < np.isfinite(values).any((1, 2)).sum() < 23  # acquisitions that saw ground
    assert 0.4 < np.nanmean(values) < 0.8
    # Collection 2, whose mask stands in another file: times are days without hours there.
    wrong = {**assets, "mask": "QA-PIXEL"}
    with pytest.raises(SourceError, match="have no mask within a minute"):
        load_reflectance(
            spec(folder / "L8_*.nc", mask="landsat-qa-pixel", assets=wrong),
            grid,
            Period.parse("2019"),
        )
