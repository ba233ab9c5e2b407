import dataclasses
import pickle

import numpy as np
import pytest
import torch

from smgrid.errors import BundleError, LayoutError
from smgrid.features.layout import get_layout
from smgrid.models.ensemble import Ensemble, mean_and_std, predict_samples
from tests.networks import make_ensemble, make_network


def inputs(n=7, seed=0):
    return np.random.default_rng(seed).random((n, 153), dtype=np.float32)


def test_prediction_is_each_members_forward_pass():
    ensemble, x = make_ensemble(), inputs()
    samples = predict_samples(ensemble, x, batch=3)
    assert samples.shape == (3, 7)
    assert samples.dtype == np.float32
    for row, (_, network) in zip(samples, ensemble.members, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(row, network(torch.from_numpy(x)), atol=1e-6)
    assert len(np.unique(samples)) > 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 14, 15, 152])
def test_incomplete_row_is_nan_and_touches_no_other(value, column):
    ensemble, x = make_ensemble(), inputs()
    whole = predict_samples(ensemble, x)
    x[2, column] = value
    samples = predict_samples(ensemble, x)
    assert np.isnan(samples[:, 2]).all()
    np.testing.assert_allclose(np.delete(samples, 2, 1), np.delete(whole, 2, 1), atol=1e-6)


def test_nothing_in_nothing_out():
    assert predict_samples(make_ensemble(), inputs(0)).shape == (3, 0)


def test_wrong_columns_are_refused():
    with pytest.raises(LayoutError, match=r"\(n, 153\).*'released-9km'.*\(7, 156\)"):
        predict_samples(make_ensemble(), np.zeros((7, 156), np.float32))


def test_ensemble_is_a_value():
    network = make_network()
    ensemble = Ensemble(
        (("a", network.train()),), get_layout("smgrid-1"), {"training": {"seed": 1}}
    )
    digest = ensemble.digest
    with torch.no_grad():
        network.out.bias += 1
    assert network.training
    assert not ensemble.members[0][1].training
    assert dataclasses.replace(ensemble).digest == digest
    assert ensemble.names == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ensemble.layout = get_layout("published")


def test_digest_follows_weights_names_order_and_layout_but_not_the_card():
    ensemble = make_ensemble()
    members = ensemble.members
    renamed = (("x", members[0][1]), *members[1:])
    changed = (("m_2_4", make_network(2, 4, seed=99)), *members[1:])
    others = [
        dataclasses.replace(ensemble, members=renamed),
        dataclasses.replace(ensemble, members=members[::-1]),
        dataclasses.replace(ensemble, members=changed),
        dataclasses.replace(ensemble, layout=ensemble.layout.with_window("published")),
    ]
    assert len({ensemble.digest, *(e.digest for e in others)}) == 5
    assert dataclasses.replace(ensemble, card={"note": "x"}).digest == ensemble.digest


def test_ensemble_survives_pickling():
    ensemble = make_ensemble(card={"title": "x"})
    again = pickle.loads(pickle.dumps(ensemble))
    assert again.digest == ensemble.digest
    assert again.card == {"title": "x"}


def test_network_of_another_size_is_refused():
    with pytest.raises(LayoutError, match="member 'a' takes 14 snapshot columns"):
        Ensemble((("a", make_network(n_snapshot=14)),), get_layout("smgrid-1"))


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a/b",), ("",), (".a",)])
def test_bad_names_are_refused(names):
    with pytest.raises(BundleError, match="distinct names"):
        Ensemble(tuple((n, make_network()) for n in names), get_layout("smgrid-1"))


def test_mean_and_population_spread():
    mean, std = mean_and_std(np.float32([[0.1, 0.2], [0.3, 0.2]]))
    np.testing.assert_allclose(mean, [0.2, 0.2])
    np.testing.assert_allclose(std, [0.1, 0], atol=1e-7)
