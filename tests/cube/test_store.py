import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pyproj
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.geo.geobox import GeoBox

from smgrid.cube.inspect import inspect
from smgrid.cube.shards import open_array
from smgrid.cube.store import Progress, open_cube, write_cube
from smgrid.cube.tiling import UnitSet
from smgrid.cube.writing import build_flags
from smgrid.errors import (
    IncompleteStoreError,
    StoreError,
    TemplateMismatchError,
    UnitsFailedError,
)
from smgrid.grid import coarsen_grid, grid_coords
from smgrid.schema import describe


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def as_map(values, grid, times=None, name="soil_moisture"):
    """Wrap values (time, y, x) as a Dataset of one variable."""
    if times is None:
        times = np.datetime64("2024-01-01", "ns") + np.arange(len(values)) * np.timedelta64(1, "D")
    variable = describe(xr.DataArray(values, dims=("time", "y", "x")), name)
    return xr.Dataset({name: variable}, {**grid_coords(grid), "time": times})


def test_a_cube_comes_back_as_it_was(cube, store):
    report = write_cube(cube, store, shard=16)
    assert (report.total, report.written) == (4 * 6 + 6 + 2 + 2, 34)
    opened = open_cube(store)
    assert isinstance(opened, xr.DataTree)
    assert opened.attrs == cube.attrs
    assert {node.path for node in opened.subtree} == {node.path for node in cube.subtree}
    for node in cube.leaves:
        old, new = node.to_dataset(), opened[node.path].to_dataset()
        assert new.attrs == old.attrs
        for name, da_old in old.data_vars.items():
            da_new = new[name]
            assert da_new.dtype == np.float32
            assert da_new.attrs == da_old.attrs
            np.testing.assert_allclose(da_new, da_old, rtol=2**-11)
        for name, coord in old.coords.items():
            assert new[name].dtype == coord.dtype
            np.testing.assert_array_equal(new[name], coord)


def test_a_map_comes_back_as_it_was(soil_map, store):
    write_cube(soil_map, store, shard=16)
    opened = open_cube(store)
    assert isinstance(opened, xr.Dataset)
    assert opened.attrs == soil_map.attrs
    assert {n: v.dtype.name for n, v in opened.items()} == {
        "soil_moisture": "float32",
        "soil_moisture_std": "float32",
        "flags": "uint16",
    }
    np.testing.assert_array_equal(opened.flags, soil_map.flags)
    assert opened.flags.attrs["flag_masks"].dtype == np.uint16
    np.testing.assert_array_equal(opened.flags.attrs["flag_masks"], [1, 2, 4, 8])


def test_a_chunk_of_a_series_holds_no_more_than_what_lies_under_a_tile(store):
    grid = GeoBox.from_bbox((0, 0, 20_000, 20_000), "EPSG:32631", resolution=100)
    half = coarsen_grid(grid, 2)
    sand = describe(xr.DataArray(np.ones(grid.shape, "f4"), dims=("y", "x")), "sand")
    values = np.random.default_rng(0).uniform(0, 0.8, (46, *half.shape)).astype("f4")
    dates = pd.date_range("2023-01-01", periods=46, freq="8D", unit="ns")
    ndvi = describe(xr.DataArray(values, dims=("date", "y", "x")), "ndvi")
    ndvi.attrs["composite_days"] = 16
    tree = {
        "/base": xr.Dataset({"sand": sand}, coords=grid_coords(grid)),
        "/x2": xr.Dataset({"ndvi": ndvi}, coords={**grid_coords(half), "date": dates}),
    }
    write_cube(xr.DataTree.from_dict(tree), store, shard=64)
    opened = open_cube(store)["x2"].ndvi
    assert zarr.open_array(store / "x2" / "ndvi", mode="r").shards == (46, 128, 128)
    assert opened.chunks == ((46,), (64, 36), (64, 36))
    np.testing.assert_allclose(opened, values, atol=1e-3)


def test_writing_what_was_opened_changes_nothing_more(cube, store, tmp_path, files_of):
    write_cube(cube, store, shard=16)
    write_cube(open_cube(store), tmp_path / "b.zarr", shard=16)
    first, second = files_of(store), files_of(tmp_path / "b.zarr")
    records = [json.loads(files.pop("_smgrid/template.json")) for files in (first, second)]
    assert records[0] == records[1]
    assert first == second


def test_dask_chunks_are_shards(cube, store):
    write_cube(cube, store, shard=16)
    opened = open_cube(store)
    assert opened["base"].vv.chunks == ((1, 1, 1, 1), (16, 14), (16, 16, 8))
    assert opened["base"].sand.chunks == ((16, 14), (16, 16, 8))
    assert opened["x2"].ndvi.chunks == ((46, 4), (15,), (20,))
    assert opened["x90"].t2m.chunks == ((368, 32), (1,), (1,))
    assert all(isinstance(coord.data, np.ndarray) for coord in opened["base"].coords.values())


# affine 3 announces that `*` will go; rioxarray still uses it.
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
@pytest.mark.parametrize("crs", ["EPSG:32648", "EPSG:4326", "EPSG:6933", "ESRI:54052"])
def test_the_crs_survives_for_every_reader(store, crs):
    resolution = 0.01 if crs == "EPSG:4326" else 9008.055210146
    grid = GeoBox.from_bbox((10, 20, 10 + 7 * resolution, 20 + 5 * resolution), crs, shape=(5, 7))
    write_cube(as_map(np.full((2, 5, 7), 0.2, "f4"), grid), store)
    opened = open_cube(store)
    assert opened.odc.geobox == grid
    assert opened.soil_moisture.odc.crs == grid.crs
    assert opened.rio.crs is not None
    assert pyproj.CRS(opened.rio.crs.to_wkt()) == pyproj.CRS(crs)
    np.testing.assert_allclose(opened.rio.transform()[:6], grid.affine[:6])
    # A reader that knows CF only.
    raw = xr.open_zarr(store, decode_coords="all")
    assert pyproj.CRS(raw.spatial_ref.attrs["crs_wkt"]) == pyproj.CRS(crs)
    assert raw.soil_moisture.encoding["grid_mapping"] == "spatial_ref"
    west, width, _, north, _, height = map(float, raw.spatial_ref.attrs["GeoTransform"].split())
    np.testing.assert_allclose((width, 0, west, 0, height, north), grid.affine[:6])


def test_every_node_has_its_grid(cube, store):
    write_cube(cube, store)
    opened = open_cube(store)
    for name in ("base", "x2", "x90"):
        assert opened[name].to_dataset().odc.geobox == cube[name].to_dataset().odc.geobox
    assert opened["x90"].t2m.odc.geobox.shape == (1, 1)
    assert opened["x90"].t2m.odc.geobox.resolution.x == 9000


seconds = st.integers(-(10**9), 9 * 10**9)  # 1938 to 2255


@settings(max_examples=15, deadline=None)
@given(st.lists(seconds, min_size=1, max_size=5, unique=True))
def test_dates_survive_however_far_apart(moments):
    times = np.sort(np.array(moments, "datetime64[s]")).astype("datetime64[ns]")
    grid = GeoBox.from_bbox((0, 0, 200, 200), "EPSG:32648", resolution=100)
    with tempfile.TemporaryDirectory() as folder:
        write_cube(as_map(np.zeros((len(times), 2, 2), "f4"), grid, times), folder)
        opened = open_cube(folder)
        assert opened.time.dtype == "datetime64[ns]"
        np.testing.assert_array_equal(opened.time, times)
        raw = zarr.open_array(folder, path="time")
        np.testing.assert_array_equal(raw[:], times.astype("datetime64[s]").astype("int64"))


@settings(max_examples=15, deadline=None)
@given(arrays("float32", (1, 3, 4), elements=st.floats(-3, 3, width=32)))
def test_packed_soil_moisture_is_off_by_half_a_count_at_most(values):
    values[0, 0, 0] = np.nan
    grid = GeoBox.from_bbox((0, 0, 400, 300), "EPSG:32648", resolution=100)
    with tempfile.TemporaryDirectory() as folder:
        write_cube(as_map(values, grid), folder)
        opened = open_cube(folder).soil_moisture.values
        assert opened.dtype == np.float32
        # Half of the scale, plus the rounding of both float32 values.
        np.testing.assert_allclose(opened, values, rtol=0, atol=0.5e-4 + 3 * 2**-23)


def test_text_along_time_survives_in_a_specified_zarr_type(cube, store):
    # Zarr warns about types without a specification, and warnings are errors here.
    write_cube(cube, store)
    assert open_cube(store)["base"].platform.values.tolist() == [
        "sentinel-1a",
        "",
        "sentinel-1a",
        "sentinel-1c",
    ]
    meta = json.loads((store / "base/platform/zarr.json").read_text())
    assert meta["data_type"] == "string"


def test_a_shard_that_was_never_written_reads_as_missing(soil_map, store):
    write_cube(soil_map, store, shard=16)
    for name in soil_map.data_vars:
        (store / name / "c/1/0/1").unlink()
    opened = open_cube(store).isel(time=1, y=slice(0, 16), x=slice(16, 32))
    assert np.isnan(opened.soil_moisture).all()
    assert np.isnan(opened.soil_moisture_std).all()
    assert (opened.flags == 65535).all()


def test_a_unit_of_missing_values_is_written(grid, store):
    write_cube(as_map(np.full((2, *grid.shape), np.nan, "f4"), grid), store)
    assert (store / "soil_moisture/c/1/0/0").is_file()
    assert np.isnan(open_cube(store).soil_moisture).all()


def test_groups_below_groups_points_and_a_users_variables(cube, store):
    points = xr.Dataset(
        {"sm_0_5cm": (("station", "time"), np.arange(6.0).reshape(2, 3))},
        {
            "station": ["a", "b"],
            "time": np.array(["2024-01-01", "2024-01-02", "2024-01-04"], "M8[ns]"),
        },
    )
    base = cube["base"].to_dataset()
    own = base[["sand"]].assign(
        classes=(("y", "x"), np.arange(1200, dtype="int64").reshape(30, 40) * 10**15),
        valid=(("y", "x"), np.eye(30, 40, dtype=bool)),
    )
    tree = xr.DataTree.from_dict({"/labels/points": points, "/own": own})
    write_cube(tree, store)
    opened = open_cube(store)
    np.testing.assert_array_equal(opened["labels/points"].sm_0_5cm, points.sm_0_5cm)
    assert opened["labels/points"].station.values.tolist() == ["a", "b"]
    assert opened["own"].classes.dtype == np.int64
    np.testing.assert_array_equal(opened["own"].classes, own.classes)
    assert opened["own"].valid.dtype == bool
    np.testing.assert_array_equal(opened["own"].valid, own.valid)


def test_lazy_arrays_of_a_file_are_written_without_dask(soil_map, tmp_path, store):
    soil_map.drop_encoding().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf", decode_coords="all") as ds:
        ds = ds[["soil_moisture"]]
        ds["soil_moisture"].attrs.pop("coordinates", None)
        write_cube(ds, store, shard=16)
    np.testing.assert_allclose(
        open_cube(store).soil_moisture, soil_map.soil_moisture, rtol=0, atol=0.51e-4
    )


def test_writing_again_does_nothing(soil_map, store, files_of):
    write_cube(soil_map, store, shard=16, manifest={"seed": 1})
    before, changed = files_of(store), (store / "zarr.json").stat().st_mtime_ns
    with dask.config.set(scheduler=lambda *args, **kwargs: pytest.fail("computed")):
        report = write_cube(soil_map, store, shard=16, manifest={"seed": 2})
    assert (report.written, report.total) == (0, 24)
    assert files_of(store) == before
    assert (store / "zarr.json").stat().st_mtime_ns == changed


def test_only_missing_units_are_written_again(soil_map, store, files_of):
    write_cube(soil_map, store, shard=16)
    before = files_of(store)
    lost = store / "flags/c/2/1/1"
    lost.unlink()
    leftover = store / "flags/c/2/1/1.0123.partial"
    leftover.write_bytes(b"torn")
    events = []
    report = write_cube(soil_map, store, shard=16, progress=events.append)
    assert (report.written, report.total) == (1, 24)
    assert events == [Progress(23, 24, ""), Progress(24, 24, "")]
    assert files_of(store) == before


def test_progress_counts_every_unit_of_every_group(cube, store):
    events = []
    write_cube(cube, store, shard=16, progress=events.append)
    totals = {"base": 30, "x2": 2, "x90": 2}
    assert events[:3] == [Progress(0, totals[group], group) for group in totals]
    for group, total in totals.items():
        assert [e.done for e in events if e.group == group] == list(range(total + 1))


def test_the_manifest_stands_beside_the_data(soil_map, store):
    write_cube(soil_map, store, manifest={"inputs": ["a", "b"], "seed": np.int64(3)})
    manifest = json.loads((store / "_smgrid/manifest.json").read_text())
    assert manifest.items() >= {"inputs": ["a", "b"], "seed": 3}.items()
    assert {"smgrid_version", "smgrid_template"} <= set(manifest)
    next(store.rglob("c/0/0/0")).unlink()
    assert write_cube(soil_map, store).written == 1  # a repair keeps what it was told before
    assert json.loads((store / "_smgrid/manifest.json").read_text()) == manifest
    with pytest.raises(StoreError, match=r"manifest, model: .* cannot be stored"):
        write_cube(soil_map, store, manifest={"model": object()})


def test_a_complete_store_says_so_in_its_root_and_reads_in_plain_xarray(cube, store):
    write_cube(cube, store, shard=16)
    root = json.loads((store / "zarr.json").read_text())
    assert root["attributes"]["smgrid_status"] == "complete"
    assert root["consolidated_metadata"]["kind"] == "inline"
    raw = xr.open_datatree(store, engine="zarr", consolidated=True, decode_coords="all")
    np.testing.assert_allclose(raw["base"].vv, cube["base"].vv, rtol=2**-11)
    raw.close()


def test_another_template_is_refused_and_nothing_is_touched(soil_map, store, files_of):
    write_cube(soil_map, store, shard=16)
    before = files_of(store)
    for other in (
        soil_map.isel(time=slice(1, None)),
        soil_map.assign_attrs(smgrid_window="published"),
    ):
        with pytest.raises(TemplateMismatchError, match=r"was made for something else:\n  "):
            write_cube(other, store, shard=16)
    with pytest.raises(TemplateMismatchError, match=r"shards: the store has \[1, 16, 16\], this w"):
        write_cube(soil_map, store, shard=8)
    assert files_of(store) == before


def test_a_folder_of_something_else_is_refused(soil_map, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"not empty and not a store of smgrid \(it holds 'notes"):
        write_cube(soil_map, tmp_path)
    with pytest.raises(StoreError, match=r"notes\.txt is a file, expected the folder"):
        write_cube(soil_map, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_not_a_store_is_not_opened(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        open_cube(tmp_path / "nothing.zarr")
    with pytest.raises(StoreError, match=r"is not a store of smgrid \(it has no _smgrid/template"):
        open_cube(tmp_path)


def test_a_store_of_another_format_version_is_refused(soil_map, store):
    write_cube(soil_map, store)
    record = json.loads((store / "_smgrid/template.json").read_text())
    for version, message in (
        (0, "has the format 0 of an older smgrid, this one reads 1; open it with the version"),
        (2, "has the format 2 of a newer smgrid, this one reads 1; update smgrid"),
        (None, r"template\.json is damaged; copy the store again"),
    ):
        text = json.dumps(record | {"smgrid_format": version})
        (store / "_smgrid/template.json").write_text(text)
        for call in (
            lambda: open_cube(store),
            lambda: write_cube(soil_map, store),
            lambda: inspect(store),
        ):
            with pytest.raises(StoreError, match=message):
                call()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_smgrid/template.json", "[1, 2]"),
        ("_smgrid/template.json", '{"smgrid_format": 1}'),
        ("_smgrid/update.json", "{}"),
        ("_smgrid/update.json", '{"files": 3, "redo": {}, "before": {}}'),
        ("_smgrid/update.json", '{"files": {}, "redo": {"base": {"time": 3}}, "before": {}}'),
        ("zarr.json", "{}"),
        ("zarr.json", "[]"),
        ("zarr.json", '{"attributes": {"smgrid_status": "complete"}}'),
    ],
)
def test_damaged_metadata_are_named(cube, store, name, content):
    write_cube(cube, store, shard=16)
    (store / name).write_text(content)
    with pytest.raises(StoreError, match=rf"a\.zarr: .*{name.rpartition('/')[2]}"):
        open_cube(store)


def test_damaged_metadata_of_an_array_are_named(cube, store):
    write_cube(cube, store, shard=16)
    (store / "x2/ndvi/zarr.json").write_text("{")
    (store / "x2/ndvi/c/0/0/0").unlink()
    open_array.cache_clear()
    with pytest.raises(StoreError, match=r"a\.zarr: x2/ndvi/zarr\.json is damaged"):
        write_cube(cube, store, shard=16, attempts=1)


def test_an_incomplete_store_is_not_opened_by_accident(soil_map, store):
    broken = soil_map.assign(
        flags=soil_map.flags.copy(data=failing(soil_map.flags.data, (2, 1, 0)))
    )
    with pytest.raises(UnitsFailedError, match="1 of 24 units failed, 23 were written now"):
        write_cube(broken, store, shard=16, attempts=1)
    with pytest.raises(IncompleteStoreError, match=r"incomplete: (\d+) of 24 units are missing"):
        open_cube(store)
    opened = open_cube(store, incomplete="allow")
    assert np.isnan(opened.soil_moisture.isel(time=2, y=slice(16, 30), x=slice(0, 16))).all()
    assert write_cube(soil_map, store, shard=16).written == 1
    assert not np.isnan(open_cube(store).soil_moisture.isel(time=2, y=20, x=10))


def failing(blocks, where):
    """Make one block of a Dask array fail when it is computed."""

    def fail(block, block_info=None):
        if block_info and block_info[0]["chunk-location"] == where:
            raise RuntimeError("asset b.tif is truncated")
        return block

    return blocks.map_blocks(fail, dtype=blocks.dtype, meta=blocks._meta)


def test_a_path_is_made_absolute_for_workers_elsewhere(soil_map, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_cube(soil_map, "a.zarr").path == str(tmp_path / "a.zarr")
    assert open_cube(Path("a.zarr")).sizes == soil_map.sizes


def test_the_graph_of_many_units_is_small_and_quick():
    shape, edge = (100, 1000, 1000), 100
    zeros = da.zeros(shape, chunks=(1, edge, edge), dtype="f4")
    units = UnitSet("", ("a", "b"), ("time", "y", "x"), shape, (1, edge, edge))
    ds = xr.Dataset(dict.fromkeys(units.names, (units.dims, zeros)))
    pending = [(units, index) for index in units.indices()]
    tracemalloc.start()
    start = time.perf_counter()
    flags = build_flags({"": ds}, pending, path="/somewhere", digest="0" * 64)
    took, (size, _) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert flags.shape == (10_000,)
    assert took < 5
    assert size < 50e6
    layer = flags.dask.layers[flags.name]
    assert len(layer) == 10_000


def test_input_in_shards_is_not_rechunked(soil_map):
    ds = soil_map.chunk({"time": 1, "y": 16, "x": 16})
    units = UnitSet("", ("soil_moisture",), ("time", "y", "x"), (4, 30, 40), (1, 16, 16))
    flags = build_flags({"": ds}, [(units, (0, 0, 0))], path="/somewhere", digest="0")
    assert set(flags.dask.layers) == {flags.name} | set(ds.soil_moisture.data.dask.layers)
