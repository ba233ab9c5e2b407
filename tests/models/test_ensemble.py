import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from smgrid.errors import BundleError, LayoutError
from smgrid.features.layout import get_layout
from smgrid.models.ensemble import Ensemble, join_ensembles, mean_and_std, predict_samples
from tests.models.uncertainties import make_applicability, make_calibration
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


def repeat(seed, *, sizes=((1, 4), (2, 4)), card=None, layout="released-9km"):
    members = tuple(
        (f"m_{d}_{w}", make_network(d, w, seed=100 * seed + 10 * d + w)) for d, w in sizes
    )
    return Ensemble(members, get_layout(layout), card or {})


def test_joined_members_predict_as_in_their_ensembles_in_the_order_given():
    parts = {"b": repeat(0), "a": repeat(1, sizes=((3, 6),)), "c-2": repeat(2)}
    joined, x = join_ensembles(parts), inputs()
    assert joined.names == ("b_m_1_4", "b_m_2_4", "a_m_3_6", "c-2_m_1_4", "c-2_m_2_4")
    assert joined.layout == get_layout("released-9km")
    expected = np.concatenate([predict_samples(part, x) for part in parts.values()])
    np.testing.assert_array_equal(predict_samples(joined, x), expected)
    assert len(np.unique(expected[:, 0])) == 5


def test_joined_card_holds_those_of_the_parts_and_a_title_that_they_share():
    cards = {
        "r0": {"title": "Fine", "training": {"seed": 0}},
        "r1": {"title": "Fine", "training": {"seed": 1}},
    }
    joined = join_ensembles({key: repeat(k, card=cards[key]) for k, key in enumerate(cards)})
    assert joined.card == {"title": "Fine", "joined": cards}
    assert json.loads(json.dumps(joined.card)) == joined.card
    for other in ({"title": "Coarse"}, {}):
        mixed = join_ensembles({"r0": repeat(0, card=cards["r0"]), "r1": repeat(1, card=other)})
        assert "title" not in mixed.card
    assert join_ensembles({"r0": repeat(0)}).card == {"joined": {"r0": {}}}


def test_only_ensembles_of_one_layout_are_joined():
    layout = get_layout("released-9km").with_window("published")
    other = dataclasses.replace(repeat(1), layout=layout)
    found = f"r0: 'released-9km' .*, r1: '{layout.name}' .{layout.digest[:12]}"
    with pytest.raises(LayoutError, match=found):
        join_ensembles({"r0": repeat(0), "r1": other})


def test_joining_nothing_or_under_keys_that_make_one_name_twice_is_refused():
    with pytest.raises(BundleError, match="no ensemble to join"):
        join_ensembles({})
    one = Ensemble((("b_c", make_network()),), get_layout("smgrid-1"))
    two = Ensemble((("c", make_network()),), get_layout("smgrid-1"))
    with pytest.raises(BundleError, match=r"distinct names.*'a_b_c', 'a_b_c'"):
        join_ensembles({"a": one, "a_b": two})


def test_calibration_belongs_to_one_ensemble():
    plain = make_ensemble()
    calibrated = dataclasses.replace(plain, calibration=make_calibration(ensemble=plain.digest))
    assert calibrated.digest == plain.digest
    assert dataclasses.replace(calibrated, card={"title": "x"}).calibration is not None
    with pytest.raises(BundleError, match="the calibration is that of another ensemble"):
        dataclasses.replace(calibrated, members=calibrated.members[1:])


def test_joined_ensembles_have_no_calibration_or_applicability():
    one = make_ensemble()
    one = dataclasses.replace(
        one,
        calibration=make_calibration(ensemble=one.digest),
        applicability=make_applicability(),
    )
    joined = join_ensembles({"r0": one})
    assert joined.calibration is None
    assert joined.applicability is None
