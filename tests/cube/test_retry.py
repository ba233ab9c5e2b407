"""A unit that fails is tried again, then recorded; the rest is written whatever fails."""

import errno
import json
import os
import pickle
import threading
import time

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from smgrid.cube.failures import Failure, judge, read_ledger
from smgrid.cube.guarding import Failed, failed, guard_graph, renamed
from smgrid.cube.inspect import inspect
from smgrid.cube.storage import open_store
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import (
    AssetError,
    IncompleteStoreError,
    NoDataError,
    SchemaError,
    SmgridError,
    SourceError,
    StoreError,
    UnitsFailedError,
)
from smgrid.grid import grid_coords
from smgrid.schema import describe
from tests.cube.faults import Flaky, raising, with_fault


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "0")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "a.zarr"


def ledger_of(store):
    path = store / "_smgrid/failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_a_failure_that_passes_leaves_no_trace(soil_map, store, tmp_path, files_of, scheduler):
    write_cube(soil_map, tmp_path / "whole.zarr", shard=16)
    flaky = Flaky(tmp_path / "calls", SourceError("b.tif: 503"), times=2)
    events = []
    with dask.config.set(scheduler=scheduler, num_workers=2):
        ds = with_fault(soil_map, "flags", (2, 1, 0), flaky)
        report = write_cube(ds, store, shard=16, progress=events.append)
    assert (report.written, report.failed, flaky.calls) == (24, (), 3)
    assert [event.done for event in events] == list(range(25))
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_beyond_the_attempts_the_rest_is_written_and_the_ledger_names_the_unit(
    soil_map, store, tmp_path, files_of, scheduler
):
    write_cube(soil_map, tmp_path / "whole.zarr", shard=16)
    error = AssetError(
        "b.tif failed: https://x.org/b.tif?sig=SECRET answers 403",
        asset="https://x.org/b.tif?sig=SECRET",
        attempts=7,
        reason="403",
    )
    flaky = Flaky(tmp_path / "calls", error, times=3)
    ds = with_fault(soil_map, "soil_moisture", (1, 0, 2), flaky)
    with dask.config.set(scheduler=scheduler), pytest.raises(UnitsFailedError) as caught:
        write_cube(ds, store, shard=16)
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "a.zarr: 1 of 24 units failed, 23 were written now: / (soil_moisture, " in message
    assert "time 2024-01-03T11:02:05, tile (0, 2) (3 attempts): b.tif failed: " in message
    assert (
        "_smgrid/failures.jsonl of the store; write again to resume, which tries only what"
        in message
    )
    (line,) = ledger_of(store)
    assert (
        line.items()
        >= {
            "group": "",
            "variables": ["soil_moisture", "soil_moisture_std", "flags"],
            "index": [1, 0, 2],
            "attempts": 3,
            "kind": "AssetError",
            "asset": "https://x.org/b.tif",
            "asset_attempts": 7,
        }.items()
    )
    assert "SECRET" not in message + str(line)
    assert np.datetime64(line["time"].removesuffix("+00:00")) > np.datetime64("2025-01-01")
    assert caught.value.report.failed == read_ledger(open_store(store))
    # A hole is never data.
    for name in soil_map.data_vars:
        assert not (store / name / "c/1/0/2").exists()
    assert inspect(store).status == "incomplete"
    with pytest.raises(IncompleteStoreError, match="1 of 24 units are missing"):
        open_cube(store)
    # A power cut can leave an empty file whose sum was written: it is not there either.
    (store / "soil_moisture/c/0/0/0").write_bytes(b"")
    # The fourth call succeeds.
    assert write_cube(ds, store, shard=16).written == 2
    assert flaky.calls == 4
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


def test_a_failing_unit_goes_to_the_end_of_the_queue(soil_map, store, tmp_path):
    times = []
    flaky = Flaky(tmp_path / "calls", SourceError("503"), times=1)

    def late(block):
        times.append(len(list(store.glob("flags/c/*/*/*"))))
        return flaky(block)

    write_cube(with_fault(soil_map, "flags", (0, 0, 0), late), store, shard=16)
    assert times[1] == 23


def test_an_input_that_units_share_is_read_once_and_fails_them_all(grid, store):
    reads = []

    def read(block):
        reads.append(1)
        if len(reads) == 1:
            raise SourceError("angle.tif: reset")
        return block + 1

    zeros = da.zeros(tuple(grid.shape), chunks=-1)
    shared = da.map_blocks(read, zeros, meta=np.zeros((0, 0)))
    values = shared[None] + da.arange(6, chunks=1)[:, None, None]
    times = np.datetime64("2024-01-01", "ns") + np.arange(6) * np.timedelta64(1, "D")
    ds = xr.Dataset({"a": (("time", "y", "x"), values)}, {**grid_coords(grid), "time": times})
    assert write_cube(ds, store).written == 6
    assert len(reads) == 2
    np.testing.assert_array_equal(open_cube(store).a[:, 3, 4], np.arange(6) + 1)


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (SchemaError("vh: found 99"), 1),
        (NoDataError("nothing"), 1),
        (TypeError("no such argument"), 1),
        (PermissionError(errno.EACCES, "denied", "b.tif"), 1),
        (SourceError("truncated"), 3),
        (OSError("reset"), 3),
        (KeyError("token"), 3),
        (MemoryError(), 3),
    ],
)
def test_only_what_may_pass_is_tried_again(soil_map, store, tmp_path, error, calls):
    flaky = Flaky(tmp_path / "calls", error, times=9)
    with pytest.raises(UnitsFailedError):
        write_cube(with_fault(soil_map, "flags", (0, 0, 0), flaky), store, shard=16)
    assert flaky.calls == calls
    (line,) = ledger_of(store)
    assert (line["kind"], line["attempts"]) == (type(error).__name__, calls)
    assert bool(line["at"]) == (not isinstance(error, SmgridError))
    assert inspect(store).units.done == 23


def soil_with(values):
    """A map of 25 tiles whose values at a step are all the one given here."""
    values = np.asarray(values, "f4")
    days = np.arange(values.size) * np.timedelta64(1, "D")
    ds = xr.Dataset(coords={"time": np.datetime64("2024-01-01", "ns") + days})
    grid = GeoBox.from_bbox((0, 0, 1000, 1000), crs="EPSG:32631", resolution=100)
    everywhere = np.broadcast_to(values[:, None, None], (values.size, 10, 10))
    data = da.from_array(everywhere, chunks=(1, 2, 2))
    variable = describe(xr.DataArray(data, dims=("time", "y", "x")), "soil_moisture")
    return ds.assign(soil_moisture=variable).assign_coords(grid_coords(grid))


WRONG, RIGHT = 40.0, 0.2  # m3 m-3
TILES = 25  # more than are enough to give up, if they are of several dates


def give_up(ds, store, *, there=0, **options):
    """Write what ends early because it is wrong, and find some units there; return the report."""
    with dask.config.set(scheduler="synchronous"), pytest.raises(UnitsFailedError) as caught:
        write_cube(ds, store, **options)
    message, report = str(caught.value), caught.value.report
    tried = len(report.failed)
    assert report.not_tried == report.total - there - report.written - tried > 0
    assert f"{tried} of {report.total} units failed" in message
    assert f"{report.not_tried} were not tried as all of these have wrong values: " in message
    assert "write to a new path" in message
    return report


def test_values_that_are_wrong_everywhere_end_the_run_early(store):
    """A wrong unit in a catalog is not worth reading a year of data."""
    report = give_up(soil_with([WRONG] * 200), store)
    assert len(report.failed) == len(ledger_of(store)) == 24


def test_many_tiles_are_wrong_everywhere_if_several_dates_are(store):
    report = give_up(soil_with([WRONG] * 20), store, shard=2)
    assert len({failure.index[0] for failure in report.failed}) == 8


def test_a_scene_with_wrong_values_does_not_end_the_run(store):
    """It is the first, has many tiles, and nothing was ever written."""
    values = [WRONG] * 3 + [RIGHT] * 2
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(UnitsFailedError, match=rf"{3 * TILES} of {5 * TILES} units") as caught,
    ):
        write_cube(soil_with(values), store, shard=2)
    report = caught.value.report
    assert (report.written, report.not_tried) == (2 * TILES, 0)


def test_wrong_values_in_all_of_a_short_map_are_not_all_read(store):
    assert len({f.index[0] for f in give_up(soil_with([WRONG] * 2), store, shard=2).failed}) == 2


def test_what_is_there_already_says_that_not_all_is_wrong(store):
    """All that is missing is tried, though all of it is wrong."""
    good = [RIGHT] + [WRONG] * 9
    for _ in range(2):
        with (
            dask.config.set(scheduler="synchronous"),
            pytest.raises(UnitsFailedError, match=f"{9 * TILES} of {10 * TILES} units") as caught,
        ):
            write_cube(soil_with(good), store, shard=2)
        assert caught.value.report.not_tried == 0


def test_other_variables_that_are_right_do_not_hide_one_that_is_wrong(store):
    """Its units are not all read because those of others, of another shape, are there."""
    height = xr.DataArray(da.ones((10, 10), chunks=-1, dtype="f4"), dims=("y", "x"))
    ds = soil_with([WRONG] * 30).assign(elevation=describe(height, "elevation"))
    away = ds.assign(
        soil_moisture=ds.soil_moisture.copy(
            data=ds.soil_moisture.data.map_blocks(raising(SourceError("503")), dtype="f4")
        )
    )
    with pytest.raises(UnitsFailedError, match="30 of 31 units failed, 1 were written"):
        write_cube(away, store, attempts=1)
    assert len(give_up(ds, store, there=1).failed) == 24


def test_the_ledger_forgets_what_was_done_and_keeps_what_was_not(soil_map, store):
    two = with_fault(soil_map, "flags", (0, 0, 0), raising(SourceError("a")))
    two = with_fault(two, "flags", (3, 1, 2), raising(SourceError("b")))
    with pytest.raises(UnitsFailedError, match="2 of 24"):
        write_cube(two, store, shard=16, attempts=1)
    assert [line["index"] for line in ledger_of(store)] == [[0, 0, 0], [3, 1, 2]]
    one = with_fault(soil_map, "flags", (3, 1, 2), raising(SourceError("c")))
    with pytest.raises(UnitsFailedError, match="1 of 24 units failed, 1 were written"):
        write_cube(one, store, shard=16, attempts=2)
    (line,) = ledger_of(store)
    assert (line["index"], line["reason"], line["attempts"]) == ([3, 1, 2], "c", 2)
    write_cube(soil_map, store, shard=16)
    assert not (store / "_smgrid/failures.jsonl").exists()


def test_a_complete_store_that_lost_a_shard_says_so_until_it_is_back(soil_map, store):
    write_cube(soil_map, store, shard=16)
    (store / "flags/c/1/0/1").unlink()
    bad = with_fault(soil_map, "flags", (1, 0, 1), raising(SourceError("a")))
    with pytest.raises(UnitsFailedError, match="1 of 24"):
        write_cube(bad, store, shard=16, attempts=1)
    root = json.loads((store / "zarr.json").read_text())
    assert root["attributes"]["smgrid_status"] == "incomplete"
    write_cube(soil_map, store, shard=16)
    assert verify(store).ok


def test_a_ledger_with_a_torn_line_is_read_without_it(soil_map, store):
    bad = with_fault(soil_map, "flags", (0, 0, 0), raising(SourceError("a")))
    with pytest.raises(UnitsFailedError):
        write_cube(bad, store, shard=16, attempts=1)
    path = store / "_smgrid/failures.jsonl"
    path.write_text(path.read_text() + '{"unit": 3}\n{"un')
    assert [f.reason for f in read_ledger(open_store(store))] == ["a"]


def test_a_disk_that_fills_up_while_an_input_is_fetched_ends_the_run(soil_map, store):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/b.h5")
    bad = with_fault(soil_map, "flags", (2, 0, 0), raising(full))
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(StoreError, match=r"No space left .*; write again to resume") as caught,
    ):
        write_cube(bad, store, shard=16)
    assert not isinstance(caught.value, UnitsFailedError)
    assert inspect(store).units.done < 23
    assert len(ledger_of(store)) == 1


def test_a_store_out_of_reach_ends_the_run_after_three_failures(soil_map, store, monkeypatch):
    calls = []

    def refuse(store, key, content):
        calls.append(key)
        raise StoreError("s3://bucket/a.zarr: the server cannot be reached")

    monkeypatch.setattr("smgrid.cube.writing.write_bytes", refuse)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(StoreError, match=r"cannot be reached\. 0 of 24 pending units"),
    ):
        write_cube(soil_map, store, shard=16)
    assert len(calls) == 3


def test_a_store_that_hiccups_is_tried_again(soil_map, store, monkeypatch):
    from smgrid.cube import writing

    original, calls = writing.write_bytes, []

    def hiccup(store, key, content):
        calls.append(key)
        if len(calls) in (2, 9):
            raise StoreError("s3://bucket/a.zarr: overloaded")
        original(store, key, content)

    monkeypatch.setattr("smgrid.cube.writing.write_bytes", hiccup)
    assert write_cube(soil_map, store, shard=16).written == 24
    assert open_cube(store).flags.equals(soil_map.flags.compute())


def test_an_interruption_is_prompt_and_leaves_a_store_to_resume(soil_map, store):
    started = threading.Event()

    def slow(block):
        started.set()
        time.sleep(0.05)
        return block

    many = soil_map.assign(flags=soil_map.flags.copy(data=soil_map.flags.data.map_blocks(slow)))

    def interrupt(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with dask.config.set(num_workers=2), pytest.raises(KeyboardInterrupt):
        write_cube(many, store, shard=16, progress=interrupt)
    assert started.is_set()
    assert inspect(store).units.done <= 5
    assert not list(store.glob("_smgrid/writer-*"))
    assert write_cube(soil_map, store, shard=16).total == 24


def test_the_second_round_waits_first(soil_map, store, tmp_path, monkeypatch):
    monkeypatch.delenv("SMGRID_RETRY_PAUSES")
    waits = []
    monkeypatch.setattr("smgrid.cube.filling.time.sleep", waits.append)
    flaky = Flaky(tmp_path / "calls", SourceError("503"), times=2)
    write_cube(with_fault(soil_map, "flags", (0, 0, 0), flaky), store, shard=16)
    first, second = waits
    assert 1 <= first <= 3
    assert 4 <= second <= 12


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_tries_failing_units_again(
    cube, soil_map, tmp_path, files_of
):
    distributed = pytest.importorskip("distributed")
    write_cube(cube, tmp_path / "cube", shard=16)
    write_cube(soil_map, tmp_path / "map", shard=16)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        events = []
        write_cube(cube, tmp_path / "a", shard=16, progress=events.append)
        assert len(events) == 3 + 34
        assert files_of(tmp_path / "a") == files_of(tmp_path / "cube")
        flaky = Flaky(tmp_path / "calls", SourceError("b.tif: 503"), times=2)
        write_cube(with_fault(soil_map, "flags", (2, 1, 1), flaky), tmp_path / "b", shard=16)
        assert flaky.calls == 3
        assert files_of(tmp_path / "b") == files_of(tmp_path / "map")
        # A worker that dies takes along what it had been given, nothing else.
        lost = with_fault(soil_map, "flags", (2, 1, 1), lambda block: os._exit(1))
        client.run_on_scheduler(
            lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0)
        )
        with pytest.raises(UnitsFailedError, match=r"[1-3] of 24 units failed.*KilledWorker"):
            write_cube(lost, tmp_path / "c", shard=16, attempts=1)
        assert verify(tmp_path / "a").ok
    failed = ledger_of(tmp_path / "c")
    assert {line["kind"] for line in failed} == {"KilledWorker"}
    assert [2, 1, 1] in [line["index"] for line in failed]
    # What had been written before the worker died and could not say so is there already.
    assert 1 <= write_cube(soil_map, tmp_path / "c", shard=16).written <= len(failed)
    assert files_of(tmp_path / "c") == files_of(tmp_path / "map")


@pytest.mark.parametrize("attempts", [0, -1])
def test_attempts_are_counted_from_one(soil_map, store, attempts):
    with pytest.raises(ValueError, match="expected 1 or more"):
        write_cube(soil_map, store, attempts=attempts)


class OddError(Exception):
    def __init__(self, code, *, asset):
        super().__init__(f"code {code}")
        self.asset = asset


def test_an_exception_that_cannot_travel_is_replaced_and_holds_no_frames():
    big = np.zeros(10)
    try:
        try:
            raise ValueError(big.size)
        except ValueError as cause:
            raise OddError(7, asset="b.tif") from cause
    except OddError as error:
        outcome = failed(error)
    assert (outcome.kind, str(outcome.error)) == ("OddError", "code 7")
    assert outcome.error.__traceback__ is None
    assert pickle.loads(pickle.dumps(outcome)).kind == "OddError"
    assert outcome.at.startswith(f"{__name__}:")
    assert judge(outcome) == "retry"
    assert outcome.error.asset == "b.tif"


def test_a_guarded_graph_passes_failures_on():
    values = da.ones(4, chunks=2) + 1
    bad = da.map_blocks(raising(ValueError("no")), da.ones(4, chunks=2), dtype=float)
    both = da.concatenate([values, bad]) * 2
    keys = both.__dask_keys__()
    graph = guard_graph(both.__dask_optimize__(both.dask, keys), suffix="x")
    results = dask.get(graph, [renamed(key, "x") for key in keys])
    np.testing.assert_array_equal(results[1], [4, 4])
    assert [isinstance(result, Failed) for result in results] == [False, False, True, True]
    assert not set(graph) & set(both.dask)


def test_a_failure_has_every_field_of_the_ledger():
    assert set(Failure.__dataclass_fields__) == {
        "unit",
        "group",
        "variables",
        "index",
        "attempts",
        "kind",
        "reason",
        "asset",
        "asset_attempts",
        "at",
        "time",
    }
