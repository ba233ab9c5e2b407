"""A map says what it was made of, and is made again to the same bytes."""

import json
import shutil

import numpy as np
import pytest
import torch

from smgrid.cube.store import open_cube, write_cube
from smgrid.cube.verify import verify
from smgrid.errors import BundleError, IncompleteStoreError, StoreError
from smgrid.export.replay import map_manifest, replay
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
