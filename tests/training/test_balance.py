import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smgrid.errors import ConfigError, NoDataError
from smgrid.training.balance import balance_by_moisture
from tests.training.tables import random_samples

FORK = {"edges": (0.1, 0.3, 0.4, 0.7), "share": (0.5, 1, 0.5)}


def labelled(labels):
    return random_samples(len(labels), label=torch.tensor(labels, dtype=torch.float32))


def test_the_choice_of_the_fork():
    rng = np.random.default_rng(0)
    table = labelled([*rng.uniform(0.0, 0.8, 1000).tolist(), np.nan])
    label = balance_by_moisture(table, **FORK).label.numpy()
    before = table.label.numpy()
    for low, high, share in ((0.1, 0.3, 0.5), (0.3, 0.4, 1), (0.4, 0.7, 0.5)):
        count = ((before >= low) & (before < high)).sum()
        assert ((label >= low) & (label < high)).sum() == round(share * count)
    assert label.min() >= 0.1
    assert label.max() <= 0.7


def test_both_outer_edges_belong_to_the_bins():
    kept = balance_by_moisture(
        labelled([0.1, 0.3, 0.4, 0.7, 0.099, 0.701]), edges=(0.1, 0.3, 0.7), share=(1, 1)
    )
    np.testing.assert_allclose(kept.label.numpy(), [0.1, 0.3, 0.4, 0.7])
    first = balance_by_moisture(labelled([0.1, 0.3, 0.7]), edges=(0.1, 0.3, 0.7), share=(1, 0))
    np.testing.assert_allclose(first.label.numpy(), [0.1])


def test_edges_are_compared_as_the_float32_of_labels():
    # As float32, 0.7 is below and 0.4 above the edge of the same name.
    table = labelled([0.4, 0.7])
    wet = balance_by_moisture(table, edges=(0.1, 0.7, 0.8), share=(0, 1)).label
    dry = balance_by_moisture(table, edges=(0.1, 0.4), share=(1,)).label
    assert (wet.tolist(), dry.tolist()) == ([table.label[1]], [table.label[0]])


def test_no_bin_exceeds_the_maximum():
    table = labelled([0.15] * 50 + [0.35] * 7 + [0.5] * 30)
    kept = balance_by_moisture(table, edges=(0.1, 0.3, 0.4, 0.7), share=(1, 1, 0.2), maximum=10)
    assert np.unique(kept.label.numpy(), return_counts=True)[1].tolist() == [10, 7, 6]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_choice_follows_the_seed_and_not_the_order_of_the_rows(seed):
    table = random_samples(60, seed=seed)
    mixed = table.take(np.random.default_rng(seed).permutation(60))
    kept = [balance_by_moisture(t, **FORK, seed=seed).label.tolist() for t in (table, mixed)]
    assert sorted(kept[0]) == sorted(kept[1])
    assert [x for x in table.label.tolist() if x in set(kept[0])] == kept[0]
    assert set(kept[0]) != set(balance_by_moisture(table, **FORK, seed=seed + 1).label.tolist())


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": (0.1, 0.1, 0.3), "share": (1, 1)},
        {"edges": (0.1, 0.3), "share": (1, 1)},
        {"edges": (0.1,), "share": ()},
        {"edges": (0.1, 0.3), "share": (1.5,)},
        {"edges": (0.1, np.nan), "share": (1,)},
        {"edges": (0.1, 0.3), "share": (1,), "maximum": 0},
    ],
)
def test_bins_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="balance_by_moisture: expected"):
        balance_by_moisture(labelled([0.2]), **wrong)


@pytest.mark.parametrize("seed", [-1, 0.5, "1"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ConfigError, match="seed: expected a whole number"):
        balance_by_moisture(labelled([0.2]), edges=(0.1, 0.3), share=(1,), seed=seed)


def test_nothing_left_is_an_error():
    with pytest.raises(NoDataError, match=r"none of 2 samples is left.*hold \[0\]"):
        balance_by_moisture(labelled([20.0, 30.0]), edges=(0.1, 0.7), share=(1,))
