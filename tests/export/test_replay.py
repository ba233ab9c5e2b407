"""A map says what it was made of, and is made again to the same bytes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

from smgrid.cube.extend_map import extend_map
from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import BundleError, IncompleteStoreError, StoreError
from smgrid.export.manifest import map_manifest
from smgrid.export.replay import replay
from smgrid.features.layout import get_layout
from smgrid.inference.predict import predict
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble
from tests.cubes import make_cube

CALL = {"as_of": "acquisition", "quantiles": [0.05, 0.5]}


def save_bundle(path, seed):
    torch.manual_seed(seed)
    members = tuple((f"m_{width}", DenseSM(1, width)) for width in (4, 8))
    return save_ensemble(Ensemble(members, get_layout("released-9km")), path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A cube, a bundle and a map that was made of them."""
    folder = tmp_path_factory.mktemp("replay")
    times = ("2021-03-02T05:30", "2021-03-14T05:30")
    write_cube(make_cube(times=times, chunks=8), folder / "cube.zarr", shard=8)
    path = save_bundle(folder / "bundle", 1)
    ensemble = load_ensemble(path)
    manifest = map_manifest(folder / "cube.zarr", ensemble, ensemble_path=path, call=CALL)
    sm = predict(open_cube(folder / "cube.zarr"), ensemble, **CALL)
    write_cube(sm, folder / "sm.zarr", shard=8, manifest=manifest)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy to do things to; its map still names the places of the original."""
    return shutil.copytree(original, tmp_path / "copy")


def files_below(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def manifest_of(store):
    return json.loads((store / "_smgrid/manifest.json").read_text())


def test_the_manifest_holds_inputs_layout_bundle_call_and_versions(original):
    found = manifest_of(original / "sm.zarr")["map"]
    cube = manifest_of(original / "cube.zarr")
    ensemble = load_ensemble(original / "bundle")
    assert found["cube"]["path"] == str(original / "cube.zarr")
    assert found["cube"]["sha256sums"] == cube["smgrid_sha256sums"]
    assert found["cube"]["manifest_sha256"] == cube["smgrid_manifest_sha256"]
    assert found["ensemble"]["path"] == str(original / "bundle")
    assert found["ensemble"]["digest"] == ensemble.digest
    assert found["layout"]["digest"] == ensemble.layout.digest
    assert found["call"] == CALL
    assert found["seeds"] == {}
    assert found["versions"]["numpy"] == np.__version__
    assert verify(original / "sm.zarr").ok


def test_a_replay_gives_the_same_bytes(original, tmp_path):
    report = replay(original / "sm.zarr", tmp_path / "again.zarr")
    assert report.ok
    assert report.differing == ()
    assert report.versions == {}
    assert report.compared > 20
    assert str(report).endswith("made again, byte-identical")
    assert files_below(original / "sm.zarr") == files_below(tmp_path / "again.zarr")


def test_cube_and_ensemble_may_have_moved(folder, original, tmp_path):
    hidden = original.rename(original.with_name("hidden"))
    try:
        with pytest.raises(StoreError, match=r"cube\.zarr does not exist"):
            replay(folder / "sm.zarr", tmp_path / "again.zarr")
        there = {"cube": folder / "cube.zarr", "ensemble": folder / "bundle"}
        assert replay(folder / "sm.zarr", tmp_path / "again.zarr", **there).ok
    finally:
        hidden.rename(original)


def test_what_differs_is_told(folder, tmp_path):
    # A map that another version made of the same inputs, with one value changed.
    manifest = manifest_of(folder / "sm.zarr")["map"]
    manifest["versions"]["numpy"] = "1.0"
    ensemble = load_ensemble(folder / "bundle")
    sm = predict(open_cube(folder / "cube.zarr"), ensemble, **CALL).load()
    sm["soil_moisture"][0, 0, 0] += 0.01
    write_cube(sm, folder / "other.zarr", shard=8, manifest={"map": manifest})
    report = replay(folder / "other.zarr", tmp_path / "again.zarr")
    assert not report.ok
    assert report.differing == ("soil_moisture/c/0/0/0",)
    assert report.versions == {"numpy": ("1.0", np.__version__)}
    assert "numpy was 1.0, is" in str(report)


def test_another_cube_is_refused(folder, tmp_path):
    times = ("2021-03-02T05:30", "2021-03-14T05:30")
    write_cube(make_cube(times=times, seed=1), tmp_path / "cube.zarr", shard=8)
    with pytest.raises(StoreError, match="is not what the map was made of"):
        replay(folder / "sm.zarr", tmp_path / "a.zarr", cube=tmp_path / "cube.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_another_ensemble_is_refused(folder, tmp_path):
    other = save_bundle(tmp_path / "other", 2)
    with pytest.raises(BundleError, match="is not the ensemble that the map was made with"):
        replay(folder / "sm.zarr", tmp_path / "a.zarr", ensemble=other)


def test_a_map_without_a_record_is_refused(folder, tmp_path):
    sm = open_cube(folder / "sm.zarr")
    write_cube(sm, tmp_path / "bare.zarr", shard=8)
    with pytest.raises(StoreError, match="does not say how it was made"):
        replay(tmp_path / "bare.zarr", tmp_path / "a.zarr")


def test_an_incomplete_cube_has_no_manifest(folder):
    root = folder / "cube.zarr/zarr.json"
    root.write_text(root.read_text().replace('"complete"', '"incomplete"'))
    with pytest.raises(IncompleteStoreError, match=r"cube\.zarr is incomplete"):
        map_manifest(
            folder / "cube.zarr",
            load_ensemble(folder / "bundle"),
            ensemble_path=folder / "bundle",
            call={},
        )


def test_what_is_there_is_not_taken_for_what_is_made(folder, tmp_path):
    with pytest.raises(StoreError, match="holds a map already"):
        replay(folder / "sm.zarr", folder / "sm.zarr")
    shutil.copytree(folder / "sm.zarr", tmp_path / "there.zarr")
    with pytest.raises(StoreError, match="give another place"):
        replay(folder / "sm.zarr", tmp_path / "there.zarr")


def test_a_damaged_map_is_no_measure(folder, tmp_path):
    shard = folder / "sm.zarr/soil_moisture/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="not what was written"):
        replay(folder / "sm.zarr", tmp_path / "again.zarr")


def write_state(place, full, steps, warmer=0):
    """A state of a cube: the first acquisitions, and the weather from 8 March on as it was then."""
    cube = full.copy()
    cube["base"] = cube["base"].to_dataset().isel(time=steps)
    weather = cube["x9"].to_dataset()
    days = weather.date >= np.datetime64("2021-03-08")
    t2m = (weather.t2m + xr.where(days, np.float32(warmer), np.float32(0))).astype("f4")
    cube["x9"] = weather.assign(
        t2m=t2m.transpose(*weather.t2m.dims).assign_attrs(weather.t2m.attrs)
    )
    write_cube(cube, place, shard=8)


def grow(folder, original, *states):
    """Extend a map from one state of a cube after the other."""
    times = ("2021-03-02T05:30", "2021-03-14T05:30", "2021-03-18T05:30")
    full = make_cube(times=times, chunks=8)
    ensemble = load_ensemble(original / "bundle")
    for name, steps, warmer in states:
        write_state(folder / name, full, steps, warmer)
        how = {"ensemble_path": original / "bundle", "call": {}}
        manifest = map_manifest(folder / name, ensemble, **how)
        sm = predict(open_cube(folder / name), ensemble)
        extend_map(sm, folder / "sm.zarr", shard=8, manifest=manifest)


@pytest.fixture(scope="module")
def grown(original, tmp_path_factory):
    """A map of three dates, the last of which is of a later state of the cube; and both states."""
    folder = tmp_path_factory.mktemp("grown")
    grow(folder, original, ("old.zarr", [0, 1], 0), ("new.zarr", [0, 1, 2], 1))
    return folder


def test_dates_of_a_state_that_is_gone_are_not_said_to_differ(grown, tmp_path):
    report = replay(grown / "sm.zarr", tmp_path / "a.zarr")
    assert report.differing == ()
    assert not report.ok
    (span,) = report.others
    # The weather of the window of 2 March is as it was, that of 14 March is not.
    assert span.dates == "2021-03-02T05:30:00 to 2021-03-14T05:30:00"
    assert span.missing == 0
    assert span.shards // 2 <= span.agreeing < span.shards
    assert report.compared > span.shards // 2 + 10  # metadata and coordinates as well
    assert f"2021-03-18T05:30:00: replayed from {grown / 'new.zarr'} with the sums" in str(report)
    assert f"not replayed, made from {grown / 'old.zarr'} with the sums" in str(report)
    assert "which it is no more (a copy of that state can be given as cube=)" in str(report)
    assert verify(tmp_path / "a.zarr").ok


def test_a_copy_of_the_old_state_replays_its_dates(grown, tmp_path):
    report = replay(grown / "sm.zarr", tmp_path / "a.zarr", cube=grown / "old.zarr")
    assert report.differing == ()
    assert not report.ok
    (span,) = report.others
    assert (span.dates[:10], span.agreeing, span.missing) == ("2021-03-18", 0, span.shards)
    assert report.compared == 2 * span.shards
    assert "are of dates that the cube does not have" in str(report)
    assert "metadata and coordinates: not compared" in str(report)
    made = manifest_of(tmp_path / "a.zarr")
    assert (
        made["map"]["cube"]["path"] == made["made_from"]["cube"]["path"] == str(grown / "old.zarr")
    )
    assert made["map"] | {"cube": {}} == manifest_of(grown / "sm.zarr")["map"] | {"cube": {}}


def test_a_true_difference_of_a_grown_map_is_one(grown, tmp_path, monkeypatch):
    from smgrid.export import replay as module

    def other(cube, *args, **kwargs):
        sm = predict(cube, *args, **kwargs).load()
        sm["soil_moisture"][:, 0, 0] += 0.01
        return sm

    monkeypatch.setattr(module, "predict", other)
    report = replay(grown / "sm.zarr", tmp_path / "a.zarr")
    assert report.differing == ("soil_moisture/c/2/0/0",)
    assert "1 differ" in str(report)


def test_a_cube_in_none_of_the_states_is_refused(grown, tmp_path):
    cube = make_cube(times=("2021-03-02T05:30",), chunks=8)
    write_cube(cube, tmp_path / "cube.zarr", shard=8)
    with pytest.raises(StoreError, match="is not what the map was made of") as error:
        replay(grown / "sm.zarr", tmp_path / "a.zarr", cube=tmp_path / "cube.zarr")
    for dates, state in (("2021-03-02T05:30:00 to 2021-03-14", "old"), ("2021-03-18", "new")):
        assert re.search(rf"{dates}.* from {grown / state}.zarr with the sums", str(error.value))


def test_dates_that_the_newest_cube_has_lost_are_no_difference(original, tmp_path):
    """As where it was built anew, and its provider has withdrawn an acquisition."""
    grow(tmp_path, original, ("old.zarr", [0, 1], 0), ("new.zarr", [1, 2], 0))
    report = replay(tmp_path / "sm.zarr", tmp_path / "a.zarr")
    assert report.differing == ()
    (span,) = report.others
    assert (span.agreeing, span.missing) == (span.shards // 2, span.shards // 2)
    assert report.compared == span.shards // 2


def test_dates_mended_from_another_state_cannot_be_replayed(grown, original, tmp_path):
    store = shutil.copytree(grown / "sm.zarr", tmp_path / "sm.zarr")
    (store / "soil_moisture/c/0/0/0").unlink()
    ensemble = load_ensemble(original / "bundle")
    how = {"ensemble_path": original / "bundle", "call": {}}
    manifest = map_manifest(grown / "new.zarr", ensemble, **how)
    extend_map(predict(open_cube(grown / "new.zarr"), ensemble), store, manifest=manifest)
    report = replay(store, tmp_path / "a.zarr", cube=grown / "old.zarr")
    first, last = report.others
    assert (first.dates[:10], first.agreeing) == ("2021-03-02", first.shards)  # as it happens
    assert "several states of the cube" in str(first)
    assert last.dates[:10] == "2021-03-18"
    assert report.compared == last.shards  # of 14 March
