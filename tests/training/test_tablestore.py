"""Tables of samples on disk: what is read is what was written, or an error says why not."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import smgrid
from smgrid.errors import IncompleteStoreError, LayoutError, NoDataError, StoreError
from smgrid.features.layout import get_layout
from smgrid.training import tablearrays
from smgrid.training.table import Samples, join_samples
from smgrid.training.tablestore import open_samples, share_series, stored_layout, write_samples
from tests.s3_server import S3Server
from tests.training.tables import random_samples

LAYOUT = get_layout("smgrid-1")
PER_SAMPLE = ("snapshot", "series_index", "label", "weight", "time", "longitude", "latitude")
PER_SAMPLE += ("lag", "station", "network")


def assert_identical(found: Samples, expected: Samples, names=("series", *PER_SAMPLE)):
    """Equal to the last bit, which also holds for NaN, NaT and the sign of zero."""
    for name in names:
        one, other = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        assert one.shape == other.shape, name
        if one.dtype.kind == "U":
            assert one.tolist() == other.tolist(), name
        else:
            assert one.dtype == other.dtype, name
            assert one.tobytes() == other.tobytes(), name


def awkward_samples() -> Samples:
    """A table with every value that a store likes to change."""
    samples = random_samples(
        6,
        4,
        label=torch.tensor([0.1, torch.nan, 0.0, -0.0, 1e-42, torch.inf]),
        time=np.array(
            [
                "2021-03-28T05:17:09.123456789",
                "NaT",
                "1999-12-31",
                "2100-01-01",
                "NaT",
                "1970-01-01",
            ],
            "M8[ns]",
        ),
        longitude=[np.nan, -180.0, 180.0, 1 / 3, -0.0, 4.5],
        lag=[np.nan, -6.5, 0, 0, 1 / 3, 24],
        station=["", "Zürich-Ähre", "NA", "水文站", 'a "b", c', "nan"],
        network="",
    )
    samples.snapshot[2, 3] = torch.nan
    samples.series[0, 1] = torch.nan
    return samples


@pytest.fixture
def store(tmp_path) -> Path:
    """A table of 40 samples of LAYOUT."""
    path = tmp_path / "table.zarr"
    write_samples(random_samples(), path, layout=LAYOUT)
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(tablearrays.CHUNKS, "sample", 8)
    monkeypatch.setitem(tablearrays.CHUNKS, "series_row", 4)


def test_a_table_is_read_back_to_the_last_bit(tmp_path, small_chunks):
    samples = awkward_samples()
    assert write_samples(samples, tmp_path / "a.zarr", layout=LAYOUT) == 6
    assert_identical(open_samples(tmp_path / "a.zarr", layout=LAYOUT), samples)
    long = random_samples(41, 13)  # several chunks, the last ones partly filled
    write_samples(long, tmp_path / "b.zarr", layout=LAYOUT)
    assert_identical(open_samples(tmp_path / "b.zarr"), long)


def test_the_layout_is_that_of_the_caller(store):
    assert stored_layout(store) == LAYOUT
    other = get_layout("released-9km")
    with pytest.raises(LayoutError, match=r"layout 'smgrid-1' .* not of 'released-9km'"):
        open_samples(store, layout=other)


@pytest.mark.parametrize("sizes", [(5, 9, 1, 30, 3), (64,), (3, 3)])
def test_a_stream_gives_the_rows_of_its_batches(tmp_path, small_chunks, sizes):
    batches = [random_samples(n, 5, seed=i) for i, n in enumerate(sizes)]
    stream = (batch for batch in batches)
    assert write_samples(stream, tmp_path / "t", layout=LAYOUT) == sum(sizes)
    found, expected = open_samples(tmp_path / "t", layout=LAYOUT), join_samples(batches)
    rows = [name for name in PER_SAMPLE if name != "series_index"]
    assert_identical(found, expected, rows)
    assert torch.equal(found.features, expected.features)


def test_a_stream_is_never_held_as_a_whole(tmp_path, small_chunks):
    """Rows are on disk before the stream is asked for more than two chunks."""
    seen = []

    def stream():
        for i in range(12):
            partial = next(tmp_path.glob("*.partial"))
            seen.append(json.loads((partial / "label" / "zarr.json").read_text())["shape"][0])
            yield random_samples(4, 2, seed=i)

    write_samples(stream(), tmp_path / "t", layout=LAYOUT)
    assert [4 * i - rows for i, rows in enumerate(seen)] == [0, 4] * 6


def test_series_are_stored_once_per_group_and_only_if_used(tmp_path):
    table = random_samples(40, 12)
    halves = [table.take(np.arange(0, 20)), table.take(np.arange(20, 40))]
    write_samples(halves, tmp_path / "t", layout=LAYOUT)
    found = open_samples(tmp_path / "t")
    assert len(found.series) == len(np.unique(table.series_index))
    assert torch.equal(found.features, table.features)


def test_every_group_of_a_stream_shares_its_series(tmp_path, small_chunks):
    table = random_samples(32, 1)
    batches = [table.take(np.arange(i, i + 4)) for i in range(0, 32, 4)]
    write_samples(batches, tmp_path / "t", layout=LAYOUT)
    assert len(open_samples(tmp_path / "t").series) == 32 // 8


def test_shared_series_are_compared_bit_by_bit():
    table = random_samples(4, 4)
    table.series[:] = 0.5
    table.series[1, 2, 45] = -0.0
    table.series[3, 2, 45] = 0.0
    samples = replace(table, series_index=torch.tensor([0, 1, 2, 3]))
    shared = share_series(samples)
    assert len(shared.series) == 3
    assert shared.series_index[0] == shared.series_index[2]
    assert shared.features.numpy().tobytes() == samples.features.numpy().tobytes()


def test_any_tool_can_read_it(store):
    samples = random_samples()
    with xr.open_zarr(store) as ds:
        ds.load()
    assert dict(ds.sizes) == {
        "sample": 40,
        "column": 15,
        "series_row": 12,
        "variable": 3,
        "step": 46,
    }
    assert {"time", "longitude", "latitude", "station", "network"} <= set(ds.coords)
    assert ds.column.values.tolist() == list(LAYOUT.column_names[:15])
    assert ds.variable.values.tolist() == ["ndvi", "t2m", "tp"]
    assert ds.time.dtype == "datetime64[ns]"
    np.testing.assert_array_equal(ds.time.values, samples.time)
    np.testing.assert_array_equal(ds.station.values, samples.station)
    runs = ds.series.isel(series_row=ds.series_index).values.reshape(40, -1)
    vectors = np.concatenate([ds.snapshot.values, runs], axis=1)
    np.testing.assert_array_equal(vectors, samples.features)
    units = {name: ds[name].attrs["units"] for name in ("label", "lag", "longitude", "latitude")}
    assert list(units.values()) == ["m3 m-3", "h", "degrees_east", "degrees_north"]
    assert all(ds[name].attrs["long_name"] for name in ds.variables)
    assert ds.lag.dtype == "float32"
    assert ds.attrs["smgrid_samples"] == 1
    assert ds.attrs["smgrid_layout"] == LAYOUT.to_dict()
    assert ds.attrs["smgrid_layout_digest"] == LAYOUT.digest
    assert ds.attrs["smgrid_version"] == smgrid.__version__


def test_unknown_times_are_nat_for_other_tools(tmp_path):
    samples = awkward_samples()
    write_samples(samples, tmp_path / "t", layout=LAYOUT)
    with xr.open_zarr(tmp_path / "t") as ds:
        np.testing.assert_array_equal(ds.time.values, samples.time)


def test_nothing_to_write_leaves_nothing(tmp_path):
    with pytest.raises(NoDataError, match="no sample to write"):
        write_samples([], tmp_path / "t", layout=LAYOUT)
    with pytest.raises(NoDataError, match="no sample to write"):
        write_samples(random_samples(0, 3), tmp_path / "t", layout=LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_breaks_leaves_nothing(tmp_path, small_chunks):
    def stream():
        yield random_samples(20, 3)
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(stream(), tmp_path / "t", layout=LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_stream_is_no_error_of_the_store(tmp_path):
    def stream():
        yield random_samples(3, 3)
        raise FileNotFoundError("an input")

    with pytest.raises(FileNotFoundError, match="an input"):
        write_samples(stream(), tmp_path / "t", layout=LAYOUT)


def test_samples_of_another_layout_are_refused(tmp_path):
    with pytest.raises(
        LayoutError, match=r"15 snapshot columns and 3 series of 46 steps, .* 14, 3"
    ):
        write_samples(random_samples(columns=14), tmp_path / "t", layout=LAYOUT)
    with pytest.raises(LayoutError, match="15, 3 and 45"):
        write_samples([random_samples(), random_samples(steps=45)], tmp_path / "t", layout=LAYOUT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [-1, 12])
def test_a_series_that_is_not_there_is_refused(tmp_path, index):
    samples = random_samples()
    samples.series_index[7] = index
    for given in (samples, [samples]):
        with pytest.raises(LayoutError, match=f"sample 7 points to series {index}, .* 12"):
            write_samples(given, tmp_path / "t", layout=LAYOUT)


def test_a_path_that_is_taken_is_kept(tmp_path, store):
    with pytest.raises(StoreError, match="exists already"):
        write_samples(random_samples(seed=1), store, layout=LAYOUT)
    assert_identical(open_samples(store), random_samples())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        write_samples(random_samples(), tmp_path / "file", layout=LAYOUT)
    (tmp_path / "empty").mkdir()
    write_samples(random_samples(), tmp_path / "empty", layout=LAYOUT)
    assert len(open_samples(tmp_path / "empty")) == 40


def test_who_came_first_is_kept(tmp_path):
    def stream():
        yield random_samples()
        write_samples(random_samples(seed=1), tmp_path / "t", layout=LAYOUT)

    with pytest.raises(StoreError, match="could not be written"):
        write_samples(stream(), tmp_path / "t", layout=LAYOUT)
    assert_identical(open_samples(tmp_path / "t"), random_samples(seed=1))


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(zarr.Array, "append", fail)
    with pytest.raises(StoreError, match=r"could not be written \(No space left on device\)"):
        write_samples(random_samples(), tmp_path / "t", layout=LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_table_is_told(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        open_samples(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "other", consolidated=False)
    for name in ("empty", "other"):
        with pytest.raises(StoreError, match="is no table of samples"):
            open_samples(tmp_path / name)


def edit_attrs(store: Path, **changes):
    path = store / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"] |= changes
    path.write_text(json.dumps(content))


def test_an_incomplete_table_is_refused(store):
    edit_attrs(store, smgrid_status="incomplete")
    with pytest.raises(IncompleteStoreError, match="is incomplete"):
        open_samples(store)


def test_a_store_is_incomplete_until_its_last_object(tmp_path, small_chunks):
    """As it lies in a bucket, where nothing can be renamed."""

    def stream():
        for i in range(3):
            for partial in tmp_path.glob("*.partial"):
                with pytest.raises(IncompleteStoreError):
                    open_samples(partial)
            yield random_samples(9, 3, seed=i)

    write_samples(stream(), tmp_path / "t", layout=LAYOUT)


def test_a_newer_format_asks_for_an_update(store):
    edit_attrs(store, smgrid_samples=2)
    with pytest.raises(StoreError, match=r"format 2 .* Update smgrid"):
        open_samples(store)


def test_a_layout_that_was_changed_is_noticed(store):
    plain = LAYOUT.to_dict()
    plain["snapshot"][0]["low"] = -31.0
    edit_attrs(store, smgrid_layout=plain)
    with pytest.raises(StoreError, match="one of them was changed"):
        open_samples(store)
    edit_attrs(store, smgrid_layout=plain | {"version": 99})
    with pytest.raises(LayoutError, match=r"table\.zarr: .*version 99"):
        open_samples(store)
    edit_attrs(store, smgrid_layout=None)
    with pytest.raises(StoreError, match="states no layout"):
        open_samples(store)


def test_damaged_metadata_is_told(store):
    (store / "zarr.json").write_text('{"zarr_format": 3, "node')
    with pytest.raises(StoreError, match=r"zarr\.json is damaged"):
        open_samples(store)


@pytest.mark.parametrize("name", sorted(tablearrays.ARRAYS))
def test_a_lost_chunk_is_noticed(tmp_path, small_chunks, name):
    write_samples(random_samples(20, 9), tmp_path / "t", layout=LAYOUT)
    chunks = sorted(path for path in (tmp_path / "t" / name / "c").rglob("*") if path.is_file())
    assert len(chunks) == 3
    chunks[1].unlink()
    with pytest.raises(StoreError, match=f"{name} is not what was written: a chunk is lost"):
        open_samples(tmp_path / "t")


@pytest.mark.parametrize("name", sorted(tablearrays.ARRAYS))
def test_a_lost_array_is_noticed(store, name):
    shutil.rmtree(store / name)
    with pytest.raises(StoreError, match=name):
        open_samples(store)


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_chunk_is_noticed(store, keep):
    chunk = store / "snapshot" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(StoreError, match="snapshot"):
        open_samples(store)


def test_chunks_of_two_tables_do_not_mix(store, tmp_path):
    write_samples(random_samples(seed=1), tmp_path / "other", layout=LAYOUT)
    shutil.copy(tmp_path / "other" / "label" / "c" / "0", store / "label" / "c" / "0")
    with pytest.raises(StoreError, match="label is not what was written"):
        open_samples(store)


@pytest.fixture(scope="module")
def bucket():
    server = S3Server()
    server.make_bucket("tables")
    yield server
    server.stop()


def test_a_bucket_holds_a_table(bucket, monkeypatch):
    for name, value in bucket.environment(bucket.url).items():
        monkeypatch.setenv(name, value)
    url, samples = "s3://tables/mine", random_samples()
    write_samples(samples, url, layout=LAYOUT)
    assert_identical(open_samples(url, layout=LAYOUT), samples)
    with pytest.raises(StoreError, match="is not empty"):
        write_samples(samples, url, layout=LAYOUT)

    def stream():
        yield samples
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(stream(), f"{url}2", layout=LAYOUT)
    with pytest.raises(StoreError, match="no table of samples"):
        open_samples(f"{url}2")
