"""Updates of a store that lacks shards: what is there and what comes anew never disagree."""

import numpy as np
import pytest

from smgrid.cube.store import Progress, open_cube
from smgrid.cube.verify import drop_damaged, verify
from smgrid.errors import StoreError
from tests.cube.archive import (
    END,
    LATER,
    NEW,
    OLD,
    build,
    data_of,
    let_viirs_stand_in,
    reads_of,
    shards_of,
    update,
    write_archive,
)
from tests.cube.faults import interrupt


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setenv("SMGRID_RETRY_PAUSES", "none")


def test_coordinates_say_where_the_values_of_a_step_that_stays_come_from(archive):
    """The first year of NDVI was lost, and comes from another source now; the second one stays."""
    let_viirs_stand_in(archive, "2030-12-31")
    store = build(archive, END)
    before = open_cube(store)["x2"].ndvi.load()
    (store / "x2/ndvi/c/0/0/0").unlink()
    let_viirs_stand_in(archive, "2021-12-31")
    assert update(archive, END, provisional_days=0).written == 1
    after = open_cube(store)["x2"].ndvi.load()
    assert set(after["ndvi_source"].sel(date="2022").values) == {"viirs"}
    assert set(after["ndvi_source"].sel(date="2023").values) == {"ndvi"}
    np.testing.assert_allclose(after.sel(date="2022"), before.sel(date="2022") + 0.1, atol=1e-3)
    np.testing.assert_array_equal(after.sel(date="2023"), before.sel(date="2023"))
    assert verify(store).ok


@pytest.mark.parametrize("after", [None, 1, 2, 9, 12])
def test_a_step_of_which_a_tile_is_lost_never_mixes_what_was_and_what_is(
    archive, monkeypatch, after
):
    """All tiles follow where the catalog describes the step anew, also after an interruption."""
    store = build(archive, END)
    before = open_cube(store)["base"].load()
    kept = {key: what for key, what in shards_of(store).items() if key.startswith("base/v")}
    (store / "base/vv/c/1/0/1").unlink()
    write_archive(archive, OLD, reprocessed=True)
    if after is not None:
        with monkeypatch.context() as patch:
            interrupt(patch, after=after)
            with pytest.raises(StoreError, match="gone"):
                update(archive, END, provisional_days=0)
    events = []
    update(archive, END, provisional_days=0, progress=events.append)
    assert events[0] == Progress(done=3 * 6 + 6 - 6, total=3 * 6 + 6, group="base")
    now = open_cube(store)["base"].load()
    assert now.platform.values.tolist() == ["sentinel-1c", "other", "sentinel-1c"]
    np.testing.assert_allclose(now.vv[1], before.vv[1] + 2, atol=0.05)
    np.testing.assert_array_equal(now.vv[::2], before.vv[::2])
    elsewhere = {key: what for key, what in kept.items() if key.split("/")[3] != "1"}
    assert elsewhere.items() <= shards_of(store).items()
    assert verify(store).ok


def test_a_lost_tile_that_is_as_it_was_leaves_the_others_alone(archive):
    store = build(archive, END)
    before = shards_of(store)
    lost = {"base/vv/c/1/0/1", "base/vh/c/1/0/1"}
    for key in lost:
        (store / key).unlink()
    assert update(archive, END, provisional_days=0).written == 1
    assert {key for key, what in shards_of(store).items() if before[key] != what} == lost
    # The sources were asked for the one tile, not for the others.
    assert sorted(reads_of(archive)) == [("vh", OLD[1]), ("vv", OLD[1])]


@pytest.mark.parametrize("content", [b"", b"torn" * 100])
def test_what_a_power_cut_left_is_not_taken_for_what_is_stored(archive, files_of, content):
    """A shard without a sum cannot be read: an update must not go on with its missing values."""
    store = build(archive, END)
    for key in ("base/vv/c/1/0/0", "x2/ndvi/c/0/0/0"):
        (store / key).write_bytes(content)
    (store / "_smgrid/sha256sums").unlink()
    update(archive)
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)


def test_damaged_shards_are_dropped_and_added_by_an_update(archive, files_of):
    store = build(archive, END)
    for key in ("base/vv/c/1/0/0", "x2/ndvi/c/0/0/0"):
        (store / key).write_bytes(b"torn" * 100)
    assert drop_damaged(verify(store)) == 2
    update(archive)
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)
    assert verify(store).ok


def test_an_interrupted_build_is_finished_by_an_update(archive, files_of):
    store = build(archive, END)
    for key in ("base/vv/c/1/0/0", "base/sand/c/0/1", "x2/ndvi/c/0/0/0"):
        (store / key).unlink()
    update(archive)
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)


def test_a_missing_unit_of_a_withdrawn_acquisition_is_an_error(archive):
    store = build(archive, END)
    (store / "base/vv/c/1/0/0").unlink()
    write_archive(archive, [OLD[0], OLD[2], *NEW])
    with pytest.raises(StoreError, match=r"/base: units of 2023-05-14T22:45:12 are missing, and"):
        update(archive)
