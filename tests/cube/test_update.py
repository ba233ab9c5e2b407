"""A cube goes on: what is there keeps its bytes, what is new is what a new build would hold."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from smgrid.cli import app
from smgrid.cube.build import load_cube
from smgrid.cube.extending import extend_group
from smgrid.cube.inspect import inspect
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.update import update_cube
from smgrid.cube.verify import verify
from smgrid.errors import (
    ConfigError,
    IncompleteStoreError,
    StoreError,
    TemplateMismatchError,
    UnitsFailedError,
)
from tests.cube.archive import (
    END,
    GRID,
    LATER,
    NEW,
    OLD,
    START,
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


def test_an_updated_cube_is_the_cube_of_the_longer_period(archive, files_of):
    store = build(archive, END)
    before = shards_of(store)
    report = update(archive)
    assert set(report.added) == {"base", "x2", "x16"}
    assert report.added["base"] == tuple(NEW)
    assert (report.added["x16"][0], report.added["x16"][-1]) == ("2023-07-01", "2024-02-10")
    assert (report.late, report.withdrawn) == ({}, {})
    after = shards_of(store)
    data = [key for key in before if key.split("/")[1] in {"vv", "vh", "sand", "ndvi", "t2m", "tp"}]
    rewritten = {key for key in data if after[key] != before[key]}
    # The year of each series that was not full; the year before stays, and so do the scenes.
    assert {key.rsplit("/", 2)[0] for key in rewritten} == {
        "x2/ndvi/c/1",
        "x16/t2m/c/1",
        "x16/tp/c/1",
    }
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)
    xr.testing.assert_identical(open_cube(store).load(), open_cube(whole).load())
    assert open_cube(store).attrs["smgrid_period"] == f"{START}/{LATER}"
    assert report.total == inspect(whole).units.total
    assert verify(store).ok


def test_a_source_that_ends_is_continued_by_the_one_that_stands_in(archive, files_of):
    """The attributes of a series change on the day when the first date of another source comes."""
    let_viirs_stand_in(archive, END)
    store = build(archive, END)
    assert "approximate" not in open_cube(store)["x2"]["ndvi"].attrs
    update(archive)
    ndvi = open_cube(store)["x2"]["ndvi"]
    assert ndvi.attrs["approximate"] == 1
    sources = ndvi["ndvi_source"].to_series()
    assert set(sources[:END]) == {"ndvi"}
    assert set(sources["2023-07-05":]) == {"viirs"}
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)
    assert verify(store).ok


def test_only_what_is_new_is_read(archive):
    build(archive, END)
    update(archive)
    reads = reads_of(archive)
    assert {date for name, date in reads if name == "vv"} == set(NEW)
    assert not [name for name, _ in reads if name == "sand"]
    first = np.datetime64("2023-06-30") - 92 - 30  # a chunk that begins before
    assert min(np.datetime64(date) for name, date in reads if name == "t2m") > first


def test_twice_changes_nothing(archive):
    store = build(archive, END)
    update(archive)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    report = update(archive)
    assert (report.written, report.added) == (0, {})
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before


def test_provisional_values_are_replaced_and_older_ones_are_not(archive):
    """Values of May 2023 on were preliminary; those before 1 April would be as well, if read."""
    write_archive(archive, OLD, provisional="2023-05-01")
    store = build(archive, END)
    first = open_cube(store)["x16"].load()
    write_archive(archive, OLD, provisional="2100-01-01")
    report = update(archive, END, provisional_days=92)
    assert (report.written, report.added) == (2, {})  # the last year of weather and of NDVI
    final = open_cube(store)["x16"].load()
    changed = (first.t2m != final.t2m).any(("y", "x"))
    assert str(changed.date[int(changed.values.argmax())].values)[:10] == "2023-05-01"
    assert changed.sel(date=slice("2023-05-01", None)).all()
    assert inspect(store).status == "complete"
    assert verify(store).ok
    # What the source says of older days now does not matter.
    write_archive(archive, OLD, provisional="2022-01-01")
    update(archive, END, provisional_days=30)
    last = open_cube(store)["x16"].load()
    changed = (last.t2m != final.t2m).any(("y", "x"))
    assert str(changed.date[int(changed.values.argmax())].values)[:10] == "2023-06-01"
    assert int(changed.sum()) == 30


def test_without_provisional_days_the_values_of_the_store_stay(archive):
    write_archive(archive, OLD + NEW, provisional="2023-05-01")
    store = build(archive, END)
    first = open_cube(store)["x16"].load()
    write_archive(archive, OLD + NEW)
    update(archive, provisional_days=0)
    last = open_cube(store)["x16"].load()
    xr.testing.assert_identical(last.isel(date=slice(first.sizes["date"])), first)
    assert not np.isnan(last.t2m).any()


def test_scenes_are_computed_again_when_asked(archive):
    store = build(archive, END)
    update(archive, END, provisional_days=0, provisional_scene_days=20)
    assert {d for n, d in reads_of(archive) if n == "vv"} == {OLD[2]}
    update(archive, END, provisional_days=0, provisional_scene_days=20)
    assert verify(store).ok


def test_late_and_withdrawn_acquisitions_are_reported_and_nothing_is_shifted(archive):
    store = build(archive, END)
    before = open_cube(store)["base"].load()
    late = "2023-05-03T22:45:00"
    write_archive(archive, [OLD[0], late, OLD[2], *NEW])
    report = update(archive)
    assert report.late == {"base": (late,)}
    assert report.withdrawn == {"base": (OLD[1],)}
    after = open_cube(store)["base"].load()
    assert [str(t)[:19] for t in after.time.values] == OLD + NEW
    xr.testing.assert_identical(after.isel(time=slice(3)), before)
    assert after.platform.values.tolist() == ["sentinel-1c"] * 5 + ["sentinel-1a"]
    # And again, as long as nobody builds it anew.
    assert update(archive).late == {"base": (late,)}


def test_several_updates_and_their_history(archive, files_of):
    store = build(archive, END)
    digests = [inspect(store).digest]
    for until in ("2023-07-15", "2023-12-31", LATER):
        update(archive, until)
        digests.append(inspect(store).digest)
    manifest = json.loads((store / "_smgrid/manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["smgrid_history"] == [
        {"template": digest, "period": f"{START}/{end}"}
        for digest, end in zip(digests, (END, "2023-07-15", "2023-12-31"), strict=False)
    ]
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)
    assert verify(store).ok


@pytest.mark.parametrize("after", [0, 1, 2, 9, 40])
def test_an_update_that_dies_is_finished_by_the_next_one(archive, files_of, monkeypatch, after):
    store = build(archive, END)
    before = open_cube(store).load()
    with monkeypatch.context() as patch:
        interrupt(patch, after=after)
        with pytest.raises(StoreError, match="gone"):
            update(archive)
    if after == 0:
        xr.testing.assert_identical(open_cube(store).load(), before)
    else:
        with pytest.raises(IncompleteStoreError, match="run update_cube again"):
            open_cube(store)
        if after == 9:  # among the coordinates: neither the old ones nor the new ones
            with pytest.raises(IncompleteStoreError, match="run update_cube again"):
                open_cube(store, incomplete="allow")
        assert inspect(store).status == "incomplete"
        assert "update is at work or was interrupted" in str(inspect(store))
    update(archive)
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)
    assert verify(store).ok


def test_the_cube_of_the_longer_period_finishes_an_update_as_well(archive, files_of, monkeypatch):
    store = build(archive, END)
    with monkeypatch.context() as patch:
        interrupt(patch, after=1)
        with pytest.raises(StoreError, match="gone"):
            update(archive)
    build(archive, LATER)
    whole = build(archive, LATER, "whole.zarr")
    # The shards that the longer period fills up are there already, but are not taken for done.
    assert data_of(store, files_of) == data_of(whole, files_of)


def test_units_that_fail_in_an_update_are_done_by_the_next(archive, monkeypatch, files_of):
    from tests.cube import archive as loaders

    store = build(archive, END)
    original = loaders._lazy

    def failing(*args, **kwargs):
        variable = original(*args, **kwargs)
        if variable.name == "t2m":
            blocks = variable.data.map_blocks(lambda block: 1 / 0, dtype="f4", meta=np.zeros(0))
            variable = variable.copy(data=blocks)
        return variable

    with monkeypatch.context() as patch:
        patch.setattr(loaders, "_lazy", failing)
        with pytest.raises(UnitsFailedError, match="ZeroDivisionErr"):
            update(archive)
    assert inspect(store).failures[0].variables == ("t2m", "tp")
    with pytest.raises(IncompleteStoreError):
        open_cube(store)
    update(archive)
    whole = build(archive, LATER, "whole.zarr")
    assert data_of(store, files_of) == data_of(whole, files_of)


def test_an_update_needs_to_know_what_it_goes_on_with(archive, soil_map):
    cube = load_cube(GRID, (START, END), catalog=archive / "catalog.yml", chunks=16)
    del cube.attrs["smgrid_catalog_path"]
    store = archive / "a.zarr"
    write_cube(cube, store, shard=16)
    with pytest.raises(ConfigError, match=r"does not say where its catalog is .*'growing'"):
        update_cube(store, until=LATER)
    with pytest.raises(ConfigError, match="attempts is 0, expected 1 or more"):
        update(archive, attempts=0)
    with pytest.raises(ConfigError, match=r"until is 2023-06-29, but .* reaches to 2023-06-30"):
        update(archive, "2023-06-29")
    write_cube(soil_map, archive / "map.zarr")
    with pytest.raises(StoreError, match=r"does not say which period it covers .* made anew"):
        update(archive, name="map.zarr")
    with pytest.raises(StoreError, match="is not a store of smgrid"):
        update(archive, name="nothing.zarr")


def test_a_store_names_its_catalog_and_what_it_was_restricted_to(archive):
    scenes = ("2023-05-10", END)
    catalog = archive / "catalog.yml"
    cube = load_cube(GRID, (START, END), catalog=catalog, chunks=16, scenes=scenes)
    write_cube(cube, archive / "a.zarr", shard=16)
    assert update_cube(archive / "a.zarr", until=LATER).added["base"] == tuple(NEW)
    updated = open_cube(archive / "a.zarr")
    assert len(updated["base"].time) == 5
    assert updated.attrs["smgrid_scenes"] == f"2023-05-10/{LATER}"


def test_labels_that_were_empty_so_far_get_some():
    times = np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]")
    fresh = xr.Dataset({"a": (("time", "y", "x"), np.ones((2, 3, 4)))}, {"time": times})
    stored = fresh.isel(time=slice(0))
    grown = extend_group("labels", stored, fresh, missing=[], provisional={"time": 9}, begun={})
    assert grown.added == ("2024-01-01", "2024-01-02")
    assert (grown.redo, grown.late, grown.withdrawn) == ({}, (), ())
    xr.testing.assert_identical(grown.ds, fresh)


def test_the_command_adds_and_reports(archive):
    build(archive, END)
    write_archive(archive, [*OLD, "2023-05-03T22:45:00", *NEW])
    result = CliRunner().invoke(app, ["update", str(archive / "a.zarr"), "--until", LATER])
    assert result.exit_code == 0
    assert re.search(r"a\.zarr: \d+ of \d+ units written now, complete\n", result.output)
    assert "/base: too late to be added, build a new store for 2023-05-03T22:45:00" in result.output
    assert open_cube(archive / "a.zarr")["base"].sizes["time"] == 6


def test_another_catalog_is_refused_and_nothing_is_touched(archive):
    store = build(archive, END)
    before = shards_of(store)
    catalog = archive / "catalog.yml"
    catalog.write_text(catalog.read_text().replace("convention: sigma0", "convention: gamma0"))
    with pytest.raises(TemplateMismatchError, match="cannot be updated, the catalog now describes"):
        update(archive)
    assert shards_of(store) == before
    assert inspect(store).status == "complete"


def test_a_series_on_another_calendar_cannot_go_on(archive, monkeypatch):
    from tests.cube import archive as loaders

    build(archive, END)
    monkeypatch.setattr(
        loaders,
        "composite_calendar",
        lambda period: pd.date_range(period.start, period.end, freq="16D", unit="ns"),
    )
    with pytest.raises(StoreError, match=r"/x2: the dates of the store and those of the catalog"):
        update(archive)
