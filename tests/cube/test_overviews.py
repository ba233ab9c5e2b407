"""Overviews: exact, georeferenced, invisible until they are complete, and never out of date."""

import json

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from odc.geo.geobox import GeoBox

from smgrid.cube.inspect import inspect
from smgrid.cube.linking import drop_overviews
from smgrid.cube.lock import writing
from smgrid.cube.overviews import overview_factors, write_overviews
from smgrid.cube.reducing import reduce_levels
from smgrid.cube.storage import open_store
from smgrid.cube.store import open_cube, open_map, write_cube
from smgrid.cube.verify import drop_damaged, verify
from smgrid.errors import (
    ConfigError,
    IncompleteStoreError,
    StoreError,
    StoreInUseError,
    UnitsFailedError,
)
from tests.cube.faults import interrupt, raising, with_fault
from tests.s3_server import S3Server

FACTORS = (2, 4, 8)


@pytest.fixture
def odd_map(soil_map):
    """The map without its last row and column (29 x 39), so that no level divides evenly."""
    return soil_map.isel(time=slice(2), y=slice(29), x=slice(39))


@pytest.fixture
def store(odd_map, tmp_path):
    path = tmp_path / "sm.zarr"
    write_cube(odd_map, path, shard=16)
    return path


def blocks_of(values, factor):
    """Yield the pixel of the overview and the pixels of the map below it."""
    ny, nx = values.shape
    for row in range(-(-ny // factor)):
        for column in range(-(-nx // factor)):
            y, x = row * factor, column * factor
            yield (row, column), values[y : y + factor, x : x + factor]


def brute_mean(values, factor):
    mean = {
        at: np.nanmean(b) if np.isfinite(b).any() else np.nan for at, b in blocks_of(values, factor)
    }
    shape = tuple(-(-size // factor) for size in values.shape)
    return np.array([mean[at] for at in np.ndindex(shape)]).reshape(shape)


def brute_majority(values, factor, bits):
    found = {
        at: sum(bit for bit in bits if np.mean((b & bit) > 0) > 0.5)
        for at, b in blocks_of(values, factor)
    }
    shape = tuple(-(-size // factor) for size in values.shape)
    return np.array([found[at] for at in np.ndindex(shape)]).reshape(shape)


def root_of(path):
    return json.loads((path / "zarr.json").read_text())


def test_overviews_are_means_and_majorities_of_the_map(store):
    write_overviews(store, smallest=8)
    sm = open_map(store)
    for factor in FACTORS:
        level = open_map(store, level=factor)
        assert dict(level.sizes) == {"time": 2, "y": -(-29 // factor), "x": -(-39 // factor)}
        for at in range(2):
            for name in ("soil_moisture", "soil_moisture_std"):
                mean = brute_mean(sm[name].values[at].astype("float64"), factor)
                # Half a count of the packing.
                np.testing.assert_allclose(level[name].values[at], mean, atol=0.501e-4, rtol=0)
            wanted = brute_majority(sm.flags.values[at], factor, (1, 2, 4, 8))
            np.testing.assert_array_equal(level.flags.values[at], wanted)
        assert np.isnan(level.soil_moisture.values).any() == (factor == 2)


def test_pixels_of_an_overview_lie_where_those_of_the_map_do(store):
    write_overviews(store, smallest=8)
    base = open_map(store)
    for factor in FACTORS:
        level = open_map(store, level=factor)
        box, whole = level.odc.geobox, base.odc.geobox
        assert box.crs == whole.crs
        assert (box.affine.c, box.affine.f) == (whole.affine.c, whole.affine.f)
        assert (box.affine.a, box.affine.e) == (100 * factor, -100 * factor)
        # The centre of the first pixel is the mean of the centres below it.
        assert level.x.values[0] == base.x.values[:factor].mean()
        assert level.y.values[1] == base.y.values[factor : 2 * factor].mean()


def test_dims_coordinates_packing_and_attributes_are_those_of_the_map(store):
    write_overviews(store, smallest=8)
    base = open_map(store)
    for factor in FACTORS:
        level = open_map(store, level=factor)
        assert level.attrs == base.attrs
        for name in ("time", "platform", "orbit_state", "relative_orbit"):
            if name in base.coords:
                xr.testing.assert_identical(level[name].variable, base[name].variable)
        for name, method in (("soil_moisture", "mean"), ("flags", "mode")):
            assert level[name].dims == base[name].dims
            attrs = dict(level[name].attrs)
            assert attrs.pop("cell_methods") == f"area: {method}"
            np.testing.assert_equal(attrs, dict(base[name].attrs))
            own, above = (
                zarr.open_array(store, path=path, mode="r")
                for path in (name, f"overviews/{factor}/{name}")
            )
            assert (own.dtype, own.fill_value) == (above.dtype, above.fill_value)


def test_the_map_stays_as_it_is(store, files_of, odd_map):
    before = files_of(store)
    opened = open_map(store).load()
    write_overviews(store, smallest=8)
    after = files_of(store)
    assert {key for key in before if after[key] != before[key]} == {"zarr.json"}
    assert all(key.startswith("overviews/") for key in after.keys() - before.keys())
    xr.testing.assert_identical(open_map(store).load(), opened)
    assert isinstance(open_cube(store), xr.Dataset)

    broken = with_fault(odd_map, "soil_moisture", (0, 0, 0), raising(AssertionError("computed")))
    assert write_cube(broken, store, shard=16).written == 0
    assert files_of(store) == after


def test_writing_them_again_changes_nothing(store, files_of):
    first = write_overviews(store, smallest=8)
    before = files_of(store)
    again = write_overviews(store, smallest=8)
    assert (first.total, first.written, again.written) == (8, 8, 0)
    assert files_of(store) == before


def test_every_pixel_is_read_once(store):
    calls = []
    blocks = da.zeros((1, 64, 64), chunks=(1, 16, 16), dtype="f4").map_blocks(
        lambda block: calls.append(1) or block, dtype="f4", meta=np.empty(0, "f4")
    )
    array = xr.DataArray(blocks, dims=("time", "y", "x"))
    with dask.config.set(scheduler="synchronous"):
        dask.compute(*reduce_levels(array, 3, tile=16))
    assert len(calls) == 16


def test_levels_end_where_one_is_small(grid):
    def factors(shape, smallest):
        return overview_factors(GeoBox(shape, grid.affine, grid.crs), smallest=smallest)

    assert factors((1001, 400), 256) == (2, 4)  # 501, 251
    assert factors((1025, 1), 256) == (2, 4, 8)  # 513, 257, 129
    assert factors((256, 256), 256) == ()
    assert factors((257, 3), 256) == (2,)
    assert factors((4096, 4096), 256) == (2, 4, 8, 16)


def test_a_small_map_has_none(store, files_of):
    before = files_of(store)
    assert write_overviews(store).total == 0
    assert files_of(store) == before
    assert verify(store).ok


# ---------------------------------------------------------------- half-written


@pytest.mark.parametrize("after", [0, 1, 5, 20, 28, 37, 44, 46, 47, 48, 49])
def test_interrupted_anywhere_they_are_invisible_or_complete(
    store, odd_map, files_of, monkeypatch, tmp_path, after
):
    whole = tmp_path / "whole.zarr"
    write_cube(odd_map, whole, shard=16)
    write_overviews(whole, smallest=16)
    before = files_of(store)
    with monkeypatch.context() as patch:
        interrupt(patch, after=after)
        with pytest.raises((StoreError, UnitsFailedError)):
            write_overviews(store, smallest=16, attempts=1)
    assert {key: content for key, content in files_of(store).items() if key in before} == before
    assert "multiscales" not in root_of(store)["attributes"]
    assert inspect(store).overviews == ()
    assert verify(store).ok
    with pytest.raises(ConfigError, match="no overview of factor 2, it has none"):
        open_map(store, level=2)

    write_overviews(store, smallest=16)
    assert files_of(store) == files_of(whole)


def test_what_was_written_before_an_interruption_is_kept(store, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, after=37)
        with pytest.raises(StoreError):
            write_overviews(store, smallest=16, attempts=1)
    done = inspect(store / "overviews").units.done
    report = write_overviews(store, smallest=16)
    assert 0 < done < report.total == 6
    assert report.written == report.total - done


def test_in_a_bucket_they_are_the_same_bytes(store, odd_map, files_of, monkeypatch):
    write_overviews(store, smallest=16)
    server = S3Server()
    try:
        for name, value in server.environment(server.url).items():
            monkeypatch.setenv(name, value)
        server.make_bucket("maps")
        write_cube(odd_map, "s3://maps/sm.zarr", shard=16)
        write_overviews("s3://maps/sm.zarr", smallest=8)
        write_overviews("s3://maps/sm.zarr", smallest=16)  # the other levels are deleted
        assert server.files("maps", "sm.zarr") == files_of(store)
        assert open_map("s3://maps/sm.zarr", level=4).sizes == open_map(store, level=4).sizes
    finally:
        server.stop()


# ---------------------------------------------------------------- out of date


def damage(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "levels"), [("lost", "none"), ("damaged", "other"), ("another", "none")]
)
def test_overviews_are_never_made_of_a_damaged_map(odd_map, tmp_path, files_of, how, levels):
    store = tmp_path / "sm.zarr"
    small = odd_map.isel(y=slice(16), x=slice(16))
    write_cube(small, store, shard=16)
    write_overviews(store, smallest=8)
    before = files_of(store)
    if levels == "none":
        drop_overviews(open_store(store, "write"))
    start = files_of(store)
    shard = store / "soil_moisture/c/0/0/0"
    if how == "lost":
        shard.unlink()
    elif how == "damaged":
        damage(shard)
    else:  # can be decoded, but is of another date
        shard.write_bytes((store / "soil_moisture/c/1/0/0").read_bytes())
    with pytest.raises(StoreError, match=r"soil_moisture/c/0/0/0 \[.* `smgrid mend` .*same map"):
        write_overviews(store, smallest=8 if levels == "none" else 4)
    after = files_of(store)
    assert {key for key in start if after.get(key) != start[key]} == {"soil_moisture/c/0/0/0"}
    assert after.keys() <= start.keys()

    drop_damaged(verify(store))
    write_cube(small, store, shard=16)
    write_overviews(store, smallest=8)
    assert files_of(store) == before


def test_overviews_that_are_there_need_nothing_of_the_map(store):
    write_overviews(store, smallest=8)
    (store / "soil_moisture/c/0/0/0").unlink()
    assert write_overviews(store, smallest=8).written == 0
    damage(store / "overviews/2/flags/c/1/0/1")
    assert drop_damaged(verify(store)) == 1
    with pytest.raises(StoreError, match="the shard is not there"):
        write_overviews(store, smallest=8)


def test_a_map_that_is_mended_has_its_overviews_again(store, odd_map, files_of):
    write_overviews(store, smallest=8)
    before = files_of(store)
    damage(store / "soil_moisture/c/0/0/0")
    assert drop_damaged(verify(store)) == 1
    assert "multiscales" not in root_of(store)["attributes"]
    with pytest.raises(IncompleteStoreError, match="overviews show a map that is complete"):
        open_map(store, level=2)
    write_cube(odd_map, store, shard=16)
    assert files_of(store) == before


def test_a_map_of_other_values_loses_its_overviews(store, odd_map):
    write_overviews(store, smallest=8)
    (store / "soil_moisture/c/0/0/0").unlink()
    write_cube(odd_map.assign(soil_moisture=odd_map.soil_moisture / 2), store, shard=16)
    assert not (store / "overviews").exists()
    assert "multiscales" not in root_of(store)["attributes"]
    assert verify(store).ok

    write_overviews(store, smallest=8)
    mean = brute_mean(open_map(store).soil_moisture.values[0].astype("f8"), 8)
    found = open_map(store, level=8).soil_moisture.values[0]
    np.testing.assert_allclose(found, mean, atol=0.501e-4, rtol=0)


def test_overviews_of_another_map_are_found_and_replaced(store, soil_map, tmp_path):
    write_overviews(store, smallest=8)
    other = tmp_path / "other.zarr"
    write_cube(soil_map.isel(time=slice(2, 4), y=slice(29), x=slice(39)), other, shard=16)
    write_overviews(other, smallest=8)
    (store / "overviews").rename(tmp_path / "unused")
    (other / "overviews").rename(store / "overviews")
    found = {problem.key: problem.text for problem in verify(store).problems}
    assert "of what the map held before" in found["overviews"]

    write_overviews(store, smallest=8)
    assert verify(store).ok
    assert (open_map(store, level=2).time == open_map(store).time).all()


def test_other_levels_replace_those_that_are_there(store):
    write_overviews(store, smallest=8)
    write_overviews(store, smallest=16)
    assert inspect(store).overviews == (2, 4)
    assert not (store / "overviews/8").exists()
    assert verify(store).ok


def test_damage_of_overviews_is_named_and_mended(store, files_of):
    write_overviews(store, smallest=8)
    before = files_of(store)
    damage(store / "overviews/2/flags/c/1/0/1")
    report = verify(store)
    (problem,) = report.problems
    assert problem.key == "overviews/2/flags/c/1/0/1"
    assert "time 2024-01-03T11:02:05, tile (0, 1)" in problem.unit
    assert drop_damaged(report) == 1
    assert open_map(store).sizes["y"] == 29
    with pytest.raises(ConfigError, match="it has none"):
        open_map(store, level=2)
    assert write_overviews(store, smallest=8).written == 1
    assert files_of(store) == before


def test_what_the_root_says_about_overviews_is_verified(store):
    write_overviews(store, smallest=8)
    content = root_of(store)
    content["attributes"]["multiscales"]["layout"][1]["spatial:shape"] = [1, 1]
    (store / "zarr.json").write_text(json.dumps(content))
    (problem,) = verify(store).problems
    assert (problem.key, problem.kind) == ("zarr.json", "changed")
    write_overviews(store, smallest=8)
    assert verify(store).ok


def test_nobody_writes_the_map_meanwhile(store):
    with writing(open_store(store, "write"), str(store)), pytest.raises(StoreInUseError):
        write_overviews(store, smallest=8)


# ---------------------------------------------------------------- bad input


def test_only_complete_maps_have_overviews(cube, odd_map, store, tmp_path):
    write_cube(cube, tmp_path / "cube.zarr", shard=16)
    with pytest.raises(StoreError, match=r"not a map on one grid .*only maps have overviews"):
        write_overviews(tmp_path / "cube.zarr")
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        write_overviews(tmp_path)
    broken = with_fault(odd_map, "soil_moisture", (0, 0, 0), raising(ValueError("no")))
    with pytest.raises(UnitsFailedError):
        write_cube(broken, tmp_path / "part.zarr", shard=16, attempts=1)
    with pytest.raises(IncompleteStoreError, match="write the same map to it again"):
        write_overviews(tmp_path / "part.zarr")
    with pytest.raises(ConfigError, match="smallest is 0"):
        write_overviews(store, smallest=0)


def test_a_level_that_is_not_there_is_refused(store):
    write_overviews(store, smallest=8)
    with pytest.raises(ConfigError, match="no overview of factor 3, it has 2, 4, 8"):
        open_map(store, level=3)
    assert open_map(store, level=1).sizes == open_map(store).sizes


# ---------------------------------------------------------------- GeoZarr


def test_the_layout_is_that_of_the_convention(store):
    write_overviews(store, smallest=8)
    attrs = root_of(store)["attributes"]
    first, *others = attrs["multiscales"]["layout"]
    assert (first["asset"], first["spatial:shape"]) == (".", [29, 39])
    assert "derived_from" not in first
    assert [level["asset"] for level in others] == [f"overviews/{f}" for f in FACTORS]
    for factor, level in zip(FACTORS, others, strict=True):
        assert level["derived_from"] == "."
        assert level["transform"] == {"scale": [factor, factor], "translation": [0, 0]}
        group = zarr.open_group(store, path=level["asset"], mode="r")
        assert group.attrs["spatial:transform"] == level["spatial:transform"]
        assert group.attrs["spatial:shape"] == level["spatial:shape"]
        assert list(group["soil_moisture"].shape[1:]) == level["spatial:shape"]
    assert attrs["multiscales"]["resampling_method"] == "average"


def test_the_conventions_own_library_finds_no_fault(store):
    zarr_cm = pytest.importorskip("zarr_cm")
    write_overviews(store, smallest=8)
    for path in (".", *(f"overviews/{f}" for f in FACTORS)):
        attrs = root_of(store / path)["attributes"]
        declared = {entry["name"] for entry in attrs["zarr_conventions"]}
        assert declared == {"proj", "spatial"} | ({"multiscales"} if path == "." else set())
        for name in declared:
            own = [e for e in attrs["zarr_conventions"] if e["name"] == name]
            assert own == [zarr_cm.convention_metadata(name)]
        _, extracted = zarr_cm.extract_all(zarr_cm.validate_all(attrs))
        assert len(extracted) == len(declared)


def test_consolidated_metadata_hold_the_overviews(store):
    write_overviews(store, smallest=8)
    found = root_of(store)["consolidated_metadata"]["metadata"]
    assert "overviews/8/flags" in found
    for key, content in found.items():
        stored = root_of(store / key)
        for metadata in (stored, content):
            metadata.pop("consolidated_metadata", None)
        assert content == stored
    group = zarr.open_group(store, mode="r")
    assert group["overviews/2/soil_moisture"].shape == (2, 15, 20)


# ---------------------------------------------------------------- any array


@settings(deadline=None, max_examples=25)
@given(
    values=npst.arrays(
        "float32",
        st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
        elements=st.one_of(st.just(np.nan), st.floats(-1, 1, width=32)),
    ),
    chunk=st.integers(1, 7),
    tile=st.integers(1, 5),
)
def test_means_do_not_depend_on_chunks(values, chunk, tile):
    array = xr.DataArray(da.from_array(values, chunks=(1, chunk, chunk)), dims=("time", "y", "x"))
    for level, found in enumerate(reduce_levels(array, 3, tile=tile), start=1):
        assert found.dtype == np.float32
        wanted = brute_mean(values[0].astype("f8"), 2**level)
        np.testing.assert_allclose(found.compute()[0], wanted, rtol=1e-6, atol=1e-7)


def test_classes_keep_the_most_frequent_and_of_several_the_smallest():
    values = np.array([[3, 3, 9, 2], [1, 2, 7, 2], [5, 6, 0, 0], [8, 7, 4, 0], [1, 9, 6, 6]], "u1")
    array = xr.DataArray(values, dims=("y", "x"))
    first, second = reduce_levels(array, 2, tile=4)
    assert first.compute().tolist() == [[3, 2], [5, 0], [1, 6]]
    assert second.compute().tolist() == [[0], [1]]
    assert first.dtype == np.uint8
