import pickle
import shutil

import dask
import pytest
import torch
import xarray as xr

from smgrid.errors import BundleError
from smgrid.features.layout import get_layout
from smgrid.inference import weights
from smgrid.inference.engine import Engine
from smgrid.inference.predict import predict
from smgrid.models.bundle import load_ensemble, save_ensemble
from smgrid.models.densesm import DenseSM
from smgrid.models.ensemble import Ensemble
from tests.cubes import make_cube


def make_ensemble(seed):
    torch.manual_seed(seed)
    members = tuple((f"m_{width}", DenseSM(2, width)) for width in (8, 64))
    return Ensemble(members, get_layout("released-9km"))


@pytest.fixture
def path(tmp_path):
    weights._compile.cache_clear()
    return save_ensemble(make_ensemble(0), tmp_path / "ensemble")


def test_a_graph_names_the_file_and_holds_no_weights(path):
    cube = make_cube(chunks=9)
    loaded, in_memory = load_ensemble(path), make_ensemble(0)
    graph = pickle.dumps(dict(predict(cube, loaded).__dask_graph__()))
    assert str(path).encode() in graph
    assert len(graph) < len(pickle.dumps(dict(predict(cube, in_memory).__dask_graph__()))) - 100_000
    xr.testing.assert_equal(predict(cube, loaded).compute(), predict(cube, in_memory).compute())


def test_a_process_compiles_once(path, monkeypatch):
    calls = []
    original = weights.compile_ensemble

    def spy(ensemble, **options):
        calls.append(ensemble.digest)
        return original(ensemble, **options)

    monkeypatch.setattr(weights, "compile_ensemble", spy)
    sm = predict(make_cube(chunks=4), load_ensemble(path))
    with dask.config.set(scheduler="threads", num_workers=3):
        sm.compute()
    assert len(calls) == 1


def test_an_ensemble_that_was_changed_goes_along_itself(path):
    loaded = load_ensemble(path)
    with torch.no_grad():
        loaded.members[0][1].out.bias += 1
    sent = weights.send(Ensemble(loaded.members, loaded.layout, origin=loaded.origin))
    assert isinstance(sent, Engine)


def test_a_worker_without_the_file_says_so(path):
    sm = predict(make_cube(chunks=9), load_ensemble(path))
    shutil.rmtree(path)
    with pytest.raises(BundleError, match=r"worker cannot read.*same path"):
        sm.compute(scheduler="synchronous")


def test_another_ensemble_in_its_place_is_refused(path):
    sm = predict(make_cube(chunks=9), load_ensemble(path))
    shutil.rmtree(path)
    save_ensemble(make_ensemble(1), path)
    with pytest.raises(BundleError, match="holds another ensemble"):
        sm.compute(scheduler="synchronous")


def test_checkpoints_keep_the_layout_they_were_loaded_with(tmp_path):
    weights._compile.cache_clear()
    torch.manual_seed(0)
    network = DenseSM(1, 8)
    torch.save(network.state_dict(), tmp_path / "m_1_8.pt")
    loaded = load_ensemble(tmp_path, layout="smgrid-1")
    engine = weights.receive(weights.send(loaded))
    assert engine.digest == loaded.digest
