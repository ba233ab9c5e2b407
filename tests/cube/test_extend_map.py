"""A map goes on, and its manifest tells from which state of its inputs each date was made."""

import json

import dask
import dask.array as da
import numpy as np
import pytest

from smgrid.cube import writing
from smgrid.cube.extend_map import extend_map
from smgrid.cube.inspect import inspect
from smgrid.cube.provenance import claim_inputs
from smgrid.cube.provenance import spans_of as spans_of_steps
from smgrid.cube.record import read_record
from smgrid.cube.storage import open_store
from smgrid.cube.store import open_map, write_cube
from smgrid.cube.template import make_template
from smgrid.cube.verify import drop_damaged, verify
from smgrid.errors import (
    StoreError,
    StoreInUseError,
    TemplateMismatchError,
    UnitsFailedError,
)
from tests.cube.conftest import TIMES
from tests.cube.faults import interrupt

DATES = [str(time)[:19] for time in TIMES]


def origin(state, lineage="a"):
    """The record of a state of the cube."""
    cube = {"path": "cube.zarr", "sha256sums": f"sums {state}"}
    return {"inputs_sha256": f"{lineage}{state}", "lineage_sha256": lineage, "cube": cube}


def said(state, lineage="a"):
    return {"map": {"cube": f"state {state}"}, "made_from": origin(state, lineage)}


@pytest.fixture
def at(soil_map):
    """The map of the first steps from a state of the cube: every value tells the state."""

    def make(state, steps):
        ds = soil_map[["soil_moisture"]].isel(time=slice(steps), y=slice(16), x=slice(32))
        values = np.full(ds.soil_moisture.shape, state / 10, "float32")
        chunks = (1, 16, 16)
        return ds.assign(soil_moisture=ds.soil_moisture.copy(data=da.from_array(values, chunks)))

    return make


@pytest.fixture
def store(tmp_path):
    return tmp_path / "sm.zarr"


@pytest.fixture
def extend(at, store):
    def run(state, steps, lineage="a"):
        return extend_map(at(state, steps), store, shard=16, manifest=said(state, lineage))

    return run


@pytest.fixture
def die(monkeypatch):
    """Run something whose process dies after so many writes."""

    def run(after, call, *args):
        with monkeypatch.context() as patch:
            interrupt(patch, after=after)
            with pytest.raises(StoreError, match="gone"), dask.config.set(scheduler="sync"):
                call(*args)

    return run


@pytest.fixture
def stop(monkeypatch):
    """Run something that is interrupted when it comes to a unit: its step and tile, or which."""
    write = writing.write_bytes

    def run(unit, call, *args):
        units = []

        def write_or_stop(store, key, content):
            units.append(key.removeprefix("soil_moisture/c/"))
            if unit in {units[-1], len(units)}:
                raise KeyboardInterrupt
            write(store, key, content)

        with monkeypatch.context() as patch:
            patch.setattr(writing, "write_bytes", write_or_stop)
            with pytest.raises(KeyboardInterrupt), dask.config.set(scheduler="sync"):
                call(*args)

    return run


def manifest_of(store):
    return json.loads((store / "_smgrid/manifest.json").read_text())


def states_of(store):
    """The state that every date was made from, by its values."""
    values = open_map(store).soil_moisture.load()
    assert (values == values[:, :1, :1]).all()
    return np.rint(values[:, 0, 0].values * 10).astype(int).tolist()


def spans_of(store):
    """Periods and states of the history, and the state of the newest dates."""
    manifest = manifest_of(store)
    history = [
        (*(one.get("periods") or one["mended"]), one["made_from"]["cube"]["sha256sums"])
        for one in manifest.get("smgrid_history", [])
    ]
    return history, manifest["made_from"]["cube"]["sha256sums"]


def period(first, last):
    return f"{DATES[first]} to {DATES[last]}"


def told_of(store):
    """The state of every date, as the manifest tells it."""
    history, newest = spans_of(store)
    told = dict.fromkeys(DATES[: open_map(store).time.size], newest)
    for *periods, state in history:
        for first, last in (text.split(" to ") for text in periods):
            told |= {date: state for date in DATES if first <= date <= last}
    return [int(state.removeprefix("sums ")) for state in told.values()]


def test_each_span_of_dates_keeps_its_record(extend, store):
    for state, steps in ((1, 2), (2, 3), (3, 4)):
        extend(state, steps)
    assert states_of(store) == [1, 1, 2, 3]
    older = [(period(0, 1), "sums 1"), (period(2, 2), "sums 2")]
    assert spans_of(store) == (older, "sums 3")
    assert manifest_of(store)["map"] == {"cube": "state 3"}
    assert verify(store).ok


def test_with_nothing_new_not_a_byte_changes(extend, store, files_of):
    extend(1, 2)
    extend(2, 3)
    before = files_of(store)
    report = extend(3, 3)
    assert (report.written, report.added) == (0, {})
    assert files_of(store) == before


def test_another_cube_is_refused_even_if_it_has_nothing_new(extend, store, files_of):
    extend(1, 2)
    before = files_of(store)
    for steps in (2, 3):
        with pytest.raises(TemplateMismatchError, match="made from something else") as error:
            extend(2, steps, "b")
        assert "'sums 1', this write 'sums 2'" in str(error.value)
        assert "map this cube to a new path" in str(error.value)
    assert files_of(store) == before


def test_something_unknown_is_not_added_to_what_is_known(extend, at, store):
    extend(1, 2)
    with pytest.raises(TemplateMismatchError, match=r"give manifest=map_manifest\(\.\.\.\)"):
        extend_map(at(2, 3), store)


def test_a_store_that_another_process_began_meanwhile_is_refused(at, store):
    """What was found before the lease may not be what is there under it."""
    write_cube(at(1, 2), store, shard=16, manifest=said(1))
    opened = open_store(str(store), "write")
    record = read_record(opened, str(store))
    with pytest.raises(TemplateMismatchError, match="was made, or begun, from other inputs"):
        claim_inputs(opened, record, said(2), {"": at(2, 2)})
    assert claim_inputs(opened, record, said(1), {"": at(1, 2)}) is None


def test_what_was_known_of_nothing_stays_unknown(at, store, extend):
    extend_map(at(1, 2), store, shard=16)
    extend(2, 3)
    (entry,) = manifest_of(store)["smgrid_history"]
    assert (entry.keys(), entry["periods"]) == ({"template", "periods"}, [period(0, 1)])
    assert manifest_of(store)["made_from"] == origin(2)


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_an_extension_that_died_goes_on_from_a_later_state(extend, store, die, after):
    """At any moment before the first unit: there is nothing of the state in between."""
    extend(1, 1)
    die(after, extend, 2, 3)
    assert inspect(store).status == ("incomplete" if after else "complete")
    extend(3, 4)
    assert states_of(store) == [1, 3, 3, 3]
    assert spans_of(store) == ([(period(0, 0), "sums 1")], "sums 3")
    assert verify(store).ok


@pytest.mark.parametrize("unit", ["0/0/0", "0/0/1", "1/0/1", "2/0/0", "3/0/1"])
def test_dates_that_were_whole_stay_and_others_are_of_one_state(extend, store, stop, unit):
    """Dask has an order of its own, so that it depends on the unit which dates are whole."""
    stop(unit, extend, 1, 4)
    assert manifest_of(store)["made_from"] == origin(1)
    whole = [t for t in range(4) if len(list(store.glob(f"soil_moisture/c/{t}/0/*"))) == 2]
    extend(2, 4)
    assert states_of(store) == told_of(store) == [1 if t in whole else 2 for t in range(4)]
    assert verify(store).ok


def test_an_extension_may_be_interrupted_again_and_again(extend, store, stop):
    extend(1, 1)
    stop("1/0/1", extend, 2, 3)
    stop("1/0/1", extend, 3, 4)  # while it replaces the first tile
    # Dask has an order of its own: the last date may have been written before the one that stops.
    last = 3 if len(list(store.glob("soil_moisture/c/3/0/*"))) == 2 else 4
    extend(4, 4)
    states = states_of(store)
    assert states == told_of(store)
    assert [states[step] for step in (0, 1, 3)] == [1, 4, last]
    assert verify(store).ok


def test_a_date_that_was_being_made_again_is_not_whole(extend, at, store, stop, monkeypatch):
    """One tile of the state 2, the other already of the state 3: there is no lack of any."""
    extend(1, 1)
    stop(2, extend, 2, 2)
    (first,) = (path.relative_to(store) for path in store.glob("soil_moisture/c/1/0/*"))
    write = writing.write_bytes

    def write_others(store, key, content):
        if key == first.as_posix():
            raise ValueError("not now")
        write(store, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_bytes", write_others)
        with pytest.raises(UnitsFailedError):
            extend_map(at(3, 2), store, manifest=said(3), attempts=1)
    assert len(list(store.glob("soil_moisture/c/1/0/*"))) == 2
    extend(4, 2)
    assert states_of(store) == told_of(store) == [1, 4]


def test_the_same_state_goes_on_without_doing_anything_twice(extend, store, stop):
    extend(1, 2)
    stop(3, extend, 2, 4)
    assert extend(2, 4).written == 2
    assert states_of(store) == [1, 1, 2, 2]
    assert spans_of(store) == ([(period(0, 1), "sums 1")], "sums 2")


def test_a_lost_unit_of_an_older_date_is_made_again_and_told(extend, store):
    extend(1, 2)
    extend(2, 3)
    (store / "soil_moisture/c/0/0/0").write_bytes(b"damaged")
    assert drop_damaged(verify(store)) == 1
    assert extend(3, 4).written == 3
    values = open_map(store).soil_moisture[0, 0].values
    np.testing.assert_allclose(values, [0.3] * 16 + [0.1] * 16, atol=1e-4)
    history, newest = spans_of(store)
    assert (DATES[0], "sums 3") in history
    assert newest == "sums 3"
    assert verify(store).ok


def test_mapping_again_tells_of_lost_units_as_well(extend, at, store):
    extend(1, 2)
    extend(2, 3)
    for step in (1, 2):
        (store / f"soil_moisture/c/{step}/0/0").unlink()
    assert write_cube(at(2, 3), store, shard=16, manifest=said(2)).written == 2
    mended = (DATES[1], "sums 2")
    assert spans_of(store) == ([(period(0, 1), "sums 1"), mended], "sums 2")
    assert verify(store).ok


@pytest.mark.parametrize("steps", [2, 4])
def test_a_claim_without_metadata_is_no_obstacle(at, store, extend, die, steps, files_of, tmp_path):
    """Killed while it wrote the metadata; the cube may be longer by now."""
    die(9, extend, 1, 2)
    assert inspect(store).status == "created"
    assert len(files_of(store)) > 5
    report = extend(2, steps)
    assert report.added == {"": tuple(DATES[:steps])}
    write_cube(at(2, steps), tmp_path / "other.zarr", shard=16, manifest=said(2))
    assert files_of(store) == files_of(tmp_path / "other.zarr")


def test_a_claim_is_not_replaced_while_another_process_writes(store, extend, die):
    die(9, extend, 1, 2)
    before = inspect(store).digest
    (store / "_smgrid/writer-000001.json").write_text("{}")
    with pytest.raises(StoreInUseError):
        extend(2, 4)
    assert inspect(store).digest == before


def test_a_claim_of_another_map_stays(at, store, extend, die):
    die(9, extend, 1, 2)
    with pytest.raises(TemplateMismatchError, match="cannot be updated"):
        extend_map(at(2, 4).isel(x=slice(16)), store, shard=16, manifest=said(2))
    assert inspect(store).digest == _digest(at(1, 2))


def test_values_whose_root_is_lost_are_not_removed(store, extend, at):
    extend(1, 2)
    (store / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"holds values, but its zarr\.json is lost"):
        extend(2, 4)
    extend(1, 2)  # what it was begun with restores it
    assert states_of(store) == [1, 1]


def _digest(data):
    from smgrid.cube.template import digest_of

    return digest_of(make_template({"": data}, shard=16).record())


def test_histories_of_earlier_versions_are_of_days():
    manifest = {
        "smgrid_history": [
            {"template": "a", "period": "2024-01-01 to 2024-01-01"},
            {"template": "b", "period": "2024-01-01 to 2024-01-03"},
        ],
        "made_from": origin(3),
    }
    spans = spans_of_steps(manifest, TIMES)
    steps = [np.flatnonzero(span.steps).tolist() for span in spans]
    assert steps == [[0], [1, 2], [3]]
    assert [span.made_from for span in spans] == [None, None, origin(3)]
