"""Backscatter from STAC items: passes, exact averages, and what is refused."""

import dask
import numpy as np
import pytest
import xarray as xr
from distributed.protocol import deserialize, serialize
from odc.geo.geobox import GeoBox

from smgrid.errors import CatalogError, NoDataError, SchemaError, SourceError
from smgrid.schema import validate
from smgrid.sources import load_source
from smgrid.sources.sentinel1 import load_stac
from smgrid.windows import Period
from tests.builders import make_item, stac_spec, utm_grid, write_catalog, write_cog

GRID = utm_grid((4, 5), 100)
PERIOD = Period.parse(("2024-03-01", "2024-03-31"))
ASCENDING = {
    "platform": "SENTINEL-1A",
    "sat:orbit_state": "ascending",
    "sat:relative_orbit": 88,
}
DESCENDING = {
    "platform": "SENTINEL-1B",
    "sat:orbit_state": "descending",
    "sat:relative_orbit": 110,
}


def fine_geobox(grid=GRID, factor=10, margin=7):
    """Return native pixels that reach beyond the grid, so that offsets are not zero."""
    return grid.zoom_to(tuple(n * factor for n in grid.shape)).pad(margin)


def speckle(shape, *, seed=0, mean=0.1):
    return np.random.default_rng(seed).exponential(mean, shape).astype("float32") + 1e-4


def write_scene(folder, name, start, *, geobox=None, values=None, orbit=ASCENDING, **kwargs):
    """Write vv and vh of one slice; return its item."""
    geobox = geobox or fine_geobox()
    values = speckle(geobox.shape, seed=len(name)) if values is None else values
    kwargs.setdefault("nodata", -32768.0)
    written = {
        "vv": write_cog(folder / f"{name}_vv.tif", values, geobox, **kwargs),
        "vh": write_cog(folder / f"{name}_vh.tif", values / 4, geobox, **kwargs),
    }
    return make_item(name, geobox, written, start=start, **orbit)


def open_scenes(folder, *items, grid=GRID, period=PERIOD, chunks=512, **changes):
    href = write_catalog(folder / "stac", "s1", items)
    return load_stac(stac_spec(href, **changes), grid, period, chunks=chunks)


def block_mean(values, factor=10, margin=7):
    inner = values[margin:-margin, margin:-margin].astype("float64")
    rows, columns = (n // factor for n in inner.shape)
    return np.nanmean(inner.reshape(rows, factor, columns, factor), axis=(1, 3))


def in_db(power):
    return 10 * np.log10(power.astype("float64"))


def test_average_of_decibels_is_exact_and_never_reads_overviews(tmp_path):
    power = speckle(fine_geobox().shape)
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", values=power, overviews=1000.0)
    ds = open_scenes(tmp_path, item)
    np.testing.assert_allclose(ds["vv"][0], block_mean(in_db(power)), atol=1e-5)
    np.testing.assert_allclose(ds["vh"][0], block_mean(in_db(power / 4)), atol=1e-5)
    assert ds["vv"].attrs["averaging"] == "db"
    assert ds["vv"].attrs["convention"] == "gamma0"
    validate(ds.compute())


def test_average_of_power_is_exact(tmp_path):
    power = speckle(fine_geobox().shape)
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", values=power, overviews=1000.0)
    ds = open_scenes(tmp_path, item, options={"average": "linear"})
    np.testing.assert_allclose(ds["vv"][0], in_db(block_mean(power)), atol=1e-5)
    assert ds["vv"].attrs["averaging"] == "linear"


@pytest.mark.parametrize("average", ["db", "linear"])
def test_stored_decibels_give_the_same_as_stored_power(tmp_path, average):
    decibels = in_db(speckle(fine_geobox().shape)).astype("float32")
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", values=decibels)
    options = {"average": average}
    ds = open_scenes(tmp_path, item, units={"vv": "dB", "vh": "dB"}, options=options)
    exact = decibels.astype("float64")
    expected = block_mean(exact) if average == "db" else in_db(block_mean(10 ** (exact / 10)))
    np.testing.assert_allclose(ds["vv"][0], expected, atol=1e-5)


def test_missing_zero_and_negative_power_are_left_out_of_the_average(tmp_path):
    power = speckle(fine_geobox().shape)
    valid = power.copy()
    power[7:10, 7:17], valid[7:10, 7:17] = -32768, np.nan
    power[10, 7:17], valid[10, 7:17] = 0, np.nan
    power[11, 7:12], valid[11, 7:12] = -0.002, np.nan
    power[7:17, 17:27], valid[7:17, 17:27] = 0, np.nan
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", values=power)
    ds = open_scenes(tmp_path, item, provides=("vv",)).compute()
    expected = block_mean(in_db(np.where(np.isnan(valid), np.float32(1), valid)))
    assert np.isnan(ds["vv"].values[0, 0, 1])
    assert not np.isinf(ds["vv"].values).any()
    first = in_db(valid[7:17, 7:17][~np.isnan(valid[7:17, 7:17])]).mean()
    np.testing.assert_allclose(ds["vv"].values[0, 0, 0], first, atol=1e-5)
    np.testing.assert_allclose(ds["vv"].values[0, 1:], expected[1:], atol=1e-5)


def test_a_stated_nodata_replaces_that_of_the_file(tmp_path):
    power = speckle(fine_geobox().shape)
    power[7:17, 7:17] = 7777
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", values=power)
    ds = open_scenes(tmp_path, item, nodata=7777.0, provides=("vv",)).compute()
    assert np.isnan(ds["vv"].values[0, 0, 0])
    assert np.isfinite(ds["vv"].values[0, 1:]).all()


def test_passes_of_one_day_stay_apart_and_slices_of_one_pass_are_joined(tmp_path):
    geobox = fine_geobox()
    left, right = geobox[:, :30], geobox[:, 30:]
    items = [
        write_scene(tmp_path, "evening-2", "2024-03-05T17:32:25", geobox=left),
        write_scene(tmp_path, "evening-1", "2024-03-05T17:32:00", geobox=right),
        write_scene(tmp_path, "morning", "2024-03-05T05:58:00", orbit=DESCENDING),
    ]
    ds = open_scenes(tmp_path, *items).compute()
    assert ds["time"].values.astype("datetime64[s]").astype(str).tolist() == [
        "2024-03-05T05:58:00",
        "2024-03-05T17:32:00",
    ]
    assert ds["platform"].values.tolist() == ["sentinel-1b", "sentinel-1a"]
    assert ds["orbit_state"].values.tolist() == ["descending", "ascending"]
    assert ds["relative_orbit"].values.tolist() == [110, 88]
    joined = np.hstack([speckle(left.shape, seed=9), speckle(right.shape, seed=9)])
    np.testing.assert_allclose(ds["vv"].values[1], block_mean(in_db(joined)), atol=1e-5)
    assert np.isfinite(ds["vv"].values).all()


def test_a_pass_counts_with_all_its_slices_on_the_day_when_it_starts(tmp_path):
    left, right = fine_geobox()[:, :30], fine_geobox()[:, 30:]
    items = [
        write_scene(tmp_path, "a", "2024-02-29T23:59:50"),
        write_scene(tmp_path, "b", "2024-03-01T00:00:15"),
        write_scene(tmp_path, "c", "2024-03-31T23:59:50", geobox=left),
        write_scene(tmp_path, "d", "2024-04-01T00:00:15", geobox=right),
    ]
    ds = open_scenes(tmp_path, *items).compute()
    times = ds["time"].values.astype("datetime64[s]").astype(str)
    assert times.tolist() == ["2024-03-31T23:59:50"]
    assert np.isfinite(ds["vv"].values).all()


def test_result_is_lazy_with_one_tile_of_pixels_per_tile_of_cells(tmp_path):
    grid = utm_grid((6, 7), 100)
    geobox = fine_geobox(grid)
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", geobox=geobox)
    ds = open_scenes(tmp_path, item, grid=grid, chunks=4)
    assert ds["vv"].chunks == ((1,), (4, 2), (4, 3))
    assert ds.odc.geobox == grid
    whole = open_scenes(tmp_path, item, grid=grid)
    np.testing.assert_array_equal(ds["vv"].compute(), whole["vv"].compute())


def test_load_source_accepts_it(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    href = write_catalog(tmp_path / "stac", "s1", [item])
    ds = load_source(stac_spec(href), GRID, PERIOD)
    assert set(ds.data_vars) == {"vv", "vh"}


def test_the_graph_can_be_sent_to_another_process(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    ds = open_scenes(tmp_path, item)
    sent = deserialize(*serialize(ds["vv"].data))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(sent.compute(), ds["vv"].values)


def test_pixels_that_do_not_nest_are_averaged_by_area(tmp_path):
    # Cells of 25 m on pixels of 10 m: 2.5 pixels each way, weights 1, 1 and a half.
    grid = utm_grid((4, 4), 25)
    geobox = utm_grid((30, 30), 10, left=500_000 - 100, top=5_600_000 + 100)
    power = speckle(geobox.shape)
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00", geobox=geobox, values=power)
    ds = open_scenes(tmp_path, item, grid=grid)
    inner = in_db(power)[10:20, 10:20]
    edges = np.arange(10)
    weights = np.array(
        [np.clip(np.minimum(edges + 1, b) - np.maximum(edges, a), 0, 1) for a, b in cells(2.5, 4)]
    )
    expected = weights @ inner @ weights.T / 6.25
    np.testing.assert_allclose(ds["vv"][0], expected, atol=1e-4)


def cells(width, count):
    return [(i * width, (i + 1) * width) for i in range(count)]


def test_slices_of_one_pass_in_two_utm_zones_are_joined(tmp_path):
    grid = utm_grid((6, 20), 100, left=706_000)  # 5.9 to 6.0 degrees east, zone 31
    west = fine_geobox(grid)[:, :110]
    east = GeoBox.from_bbox(grid.footprint("EPSG:32632").boundingbox, "EPSG:32632", resolution=10)
    items = [
        write_scene(tmp_path, "w", "2024-03-05T17:32:00", geobox=west, values=flat(west, 0.1)),
        write_scene(tmp_path, "e", "2024-03-05T17:32:25", geobox=east, values=flat(east, 0.2)),
    ]
    ds = open_scenes(tmp_path, *items, grid=grid).compute()
    assert ds.sizes["time"] == 1
    np.testing.assert_allclose(ds["vv"].values[0, :, :9], -10, atol=1e-4)
    np.testing.assert_allclose(ds["vv"].values[0, :, 12:], in_db(np.array(0.2)), atol=1e-4)
    assert np.isfinite(ds["vv"].values).all()


def flat(geobox, value):
    return np.full(geobox.shape, value, "float32")


def test_an_acquisition_beside_the_grid_is_no_time_step(tmp_path):
    beside = utm_grid((40, 40), 10, left=520_000)
    # Its bounding box in degrees meets that of the grid, its outline does not.
    box = GRID.footprint("EPSG:4326").boundingbox
    slanted = make_item("slanted", GRID, {}, start="2024-03-07T17:32:00", **ASCENDING)
    slanted.geometry = {
        "type": "Polygon",
        "coordinates": [
            [
                [box.right + 1, box.top],
                [box.right + 1, box.bottom - 1],
                [box.left, box.bottom - 1],
                [box.right + 1, box.top],
            ]
        ],
    }
    slanted.assets = write_scene(tmp_path, "s", "2024-03-07T17:32:00").assets
    items = [
        write_scene(tmp_path, "here", "2024-03-05T17:32:00"),
        write_scene(tmp_path, "beside", "2024-03-06T17:32:00", geobox=beside),
        slanted,
    ]
    assert open_scenes(tmp_path, *items).sizes["time"] == 1
    message = r"s1 \(s1\) has no data for 2024-03-01/2024-03-31 in 3\.0000\.\.3\.0071 E"
    with pytest.raises(NoDataError, match=message):
        open_scenes(tmp_path / "other", *items[1:])


def test_no_pass_in_the_period(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    with pytest.raises(NoDataError, match="2023-01-01/2023-12-31"):
        open_scenes(tmp_path, item, period=Period.parse(("2023-01-01", "2023-12-31")))


def test_decibels_declared_as_power_are_refused(tmp_path):
    values = in_db(speckle(fine_geobox().shape)).astype("float32")
    item = write_scene(tmp_path, "scene-7", "2024-03-05T17:32:00", values=values)
    ds = open_scenes(tmp_path, item)
    message = (
        r"vv of scene-7: found -.*power \(units \"1\"\) cannot be negative; in test.yml, line 1"
    )
    with pytest.raises(SchemaError, match=message):
        ds["vv"].compute()


def test_power_declared_as_decibels_is_refused(tmp_path):
    item = write_scene(tmp_path, "scene-7", "2024-03-05T17:32:00")
    ds = open_scenes(tmp_path, item, units={"vv": "dB", "vh": "dB"})
    with pytest.raises(SchemaError, match=r"vh of scene-7: its units are dB, but all \d+ values"):
        ds["vh"].compute()


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_broken_raster_gives_one_error_that_names_it(tmp_path, kept):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    path = tmp_path / "a_vv.tif"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    ds = open_scenes(tmp_path, item)
    with pytest.raises(SourceError, match=r"a_vv\.tif cannot be read .* test.yml, line 1"):
        ds["vv"].compute()
    ds["vh"].compute()


def test_a_missing_raster_is_never_read_as_no_data(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    ds = open_scenes(tmp_path, item)
    (tmp_path / "a_vh.tif").unlink()
    with pytest.raises(SourceError, match=r"a_vh\.tif cannot be read \(.*No such file"):
        ds["vh"].compute()


def unplaced_item(tmp_path):
    geobox = fine_geobox()
    path = write_cog(tmp_path / "vv.tif", speckle(geobox.shape), geobox, crs=None)
    start = "2024-03-05T17:32:00"
    return make_item("a", geobox, {"vv": path}, start=start, projection="absent", **ASCENDING)


def test_a_raster_without_crs_is_refused_with_the_cure(tmp_path):
    message = r"vv\.tif has no CRS; state its CRS as crs: in test.yml, line 1"
    with pytest.raises(SourceError, match=message):
        open_scenes(tmp_path, unplaced_item(tmp_path), provides=("vv",))


def test_a_stated_crs_places_a_raster_without_one(tmp_path):
    item = unplaced_item(tmp_path)
    ds = open_scenes(tmp_path, item, provides=("vv",), crs="EPSG:32631")
    power = speckle(fine_geobox().shape)
    np.testing.assert_allclose(ds["vv"][0], block_mean(in_db(power)), atol=1e-5)


def test_items_without_projection_are_placed_by_their_files(tmp_path):
    geobox = fine_geobox()
    path = write_cog(tmp_path / "vv.tif", speckle(geobox.shape), geobox)
    start = "2024-03-05T17:32:00"
    item = make_item("a", geobox, {"vv": path}, start=start, projection="absent", **ASCENDING)
    ds = open_scenes(tmp_path, item, provides=("vv",))
    expected = block_mean(in_db(speckle(geobox.shape)))
    np.testing.assert_allclose(ds["vv"][0], expected, atol=1e-5)


def test_an_item_that_states_a_wrong_transform_is_refused(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    item.properties["proj:transform"][2] += 4
    ds = open_scenes(tmp_path, item)
    with pytest.raises(SourceError, match=r"a_vv\.tif: its pixels are 0\.40 of a pixel off"):
        ds["vv"].compute()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convention": None}, "convention of s1 is None; write sigma0 or gamma0"),
        ({"units": {"vv": "1"}}, "units.vh of s1 is missing"),
        ({"units": {"vv": "1", "vh": "%"}}, "units.vh of s1 is '%'"),
        (
            {"options": {"averge": "db"}},
            "options.averge of s1: unknown key; did you mean 'average'",
        ),
        ({"options": {"average": "mean"}}, "options.average of s1 is 'mean'; use db or linear"),
        ({"assets": {"vv": "vv"}}, "assets.vh of s1 is missing"),
        ({"stac": None}, "s1 needs stac"),
    ],
)
def test_what_a_catalog_entry_lacks_is_said(changes, message):
    with pytest.raises(CatalogError, match=f"test.yml, line 1: {message}"):
        load_stac(stac_spec("nowhere", **changes), GRID, PERIOD)


def test_an_asset_that_no_item_has_is_refused(tmp_path):
    item = write_scene(tmp_path, "a", "2024-03-05T17:32:00")
    with pytest.raises(SourceError, match=r"assets.vv of s1 is 'VV', which no item has; .*'vv'"):
        open_scenes(tmp_path, item, assets={"vv": "VV", "vh": "vh"})


def test_scenes_of_other_polarisations_are_left_out(tmp_path):
    geobox = fine_geobox()
    path = write_cog(tmp_path / "hh.tif", speckle(geobox.shape), geobox)
    polar = make_item("hh", geobox, {"hh": path}, start="2024-03-01T17:32:00", **ASCENDING)
    single = write_scene(tmp_path, "a", "2024-03-13T17:32:00")
    del single.assets["vh"]
    both = write_scene(tmp_path, "b", "2024-03-25T17:32:00")
    ds = open_scenes(tmp_path, polar, single, both).compute()
    assert ds.sizes["time"] == 2
    assert np.isfinite(ds["vv"].values).all()
    assert np.isnan(ds["vh"].values[0]).all()
    assert np.isfinite(ds["vh"].values[1]).all()


def angle_item(folder, name, orbit, geobox, value):
    gradient = value + np.arange(geobox.shape.x, dtype="float32") / 100
    values = np.broadcast_to(gradient, geobox.shape).astype("float32")
    path = write_cog(folder / f"{name}.tif", values, geobox, nodata=-9999.0)
    return make_item(name, geobox, {"angle": path}, start="2015-01-01", **orbit)


def open_angle(folder, *items, grid=GRID):
    href = write_catalog(folder / "stac", "angle", items)
    spec = stac_spec(
        href,
        collection="angle",
        loader="smgrid.sources.sentinel1:load_angle",
        provides=("angle",),
        assets={"angle": "angle"},
        units={},
        convention=None,
    )
    return load_source(spec, grid, PERIOD)


def test_angles_are_one_raster_per_relative_orbit(tmp_path):
    geobox = fine_geobox()
    items = [
        angle_item(tmp_path, "d", DESCENDING, geobox, 43.0),
        angle_item(tmp_path, "a1", ASCENDING, geobox[:, :32], 30.0),
        angle_item(tmp_path, "a2", ASCENDING, geobox[:, 32:], 30.32),
    ]
    ds = open_angle(tmp_path, *items)
    assert ds["angle"].dims == ("relative_orbit", "y", "x")
    assert ds["relative_orbit"].values.tolist() == [88, 110]
    assert ds["relative_orbit"].dtype == "int16"
    assert ds["orbit_state"].values.tolist() == ["ascending", "descending"]
    centre = 7 + 4.5 + 10 * np.arange(5)
    np.testing.assert_allclose(ds["angle"][0], np.tile(30 + centre / 100, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(ds["angle"][1], np.tile(43 + centre / 100, (4, 1)), atol=1e-5)


def test_coarse_angles_are_interpolated(tmp_path):
    geobox = utm_grid((6, 8), 1000, left=498_000, top=5_602_000)
    ds = open_angle(tmp_path, angle_item(tmp_path, "a", ASCENDING, geobox, 30.0))
    x = (ds["x"].values - 498_500) / 1000
    np.testing.assert_allclose(ds["angle"][0], np.tile(30 + x / 100, (4, 1)), atol=1e-4)


def test_an_angle_without_its_orbit_is_refused(tmp_path):
    item = angle_item(tmp_path, "a", {"platform": "sentinel-1a"}, fine_geobox(), 30.0)
    with pytest.raises(SourceError, match="a has no sat:relative_orbit"):
        open_angle(tmp_path, item)


def test_the_whole_dataset_keeps_the_coordinates_of_the_cube(tmp_path):
    ds = open_scenes(tmp_path, write_scene(tmp_path, "a", "2024-03-05T17:32:00"))
    assert isinstance(ds, xr.Dataset)
    assert set(ds.coords) == {
        *("time", "y", "x", "spatial_ref", "platform", "orbit_state", "relative_orbit")
    }
