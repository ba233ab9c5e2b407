import numpy as np
import pytest
import torch

from smgrid.errors import LayoutError, NoDataError
from smgrid.training.table import join_samples, make_samples
from tests.training.tables import random_samples


def test_features_are_snapshot_and_the_row_s_own_series():
    samples = random_samples()
    features = samples.features
    assert features.shape == (40, 153)
    for i in (0, 17, 39):
        own = samples.series[samples.series_index[i]].reshape(-1)
        torch.testing.assert_close(features[i], torch.cat([samples.snapshot[i], own]))


@pytest.mark.parametrize("as_", ["mask", "rows", "list", "view"])
def test_take_keeps_rows_together(as_):
    samples = random_samples()
    rows = np.array([3, 8, 21])
    which = {
        "mask": np.isin(np.arange(40), rows),
        "rows": rows,
        "list": [3, 8, 21],
        "view": np.array([21, 8, 3])[::-1],
    }[as_]
    taken = samples.take(which)
    assert torch.equal(taken.features, samples.features[rows])
    for name in ("label", "weight", "time", "longitude", "latitude", "lag", "station", "network"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(samples, name)[rows])


def test_take_of_nothing():
    assert len(random_samples().take([])) == 0


def test_compact_drops_series_of_nobody_and_changes_nothing_else():
    taken = random_samples(m=30).take(np.array([1, 2, 5]))
    small = taken.compact()
    assert len(small.series) <= 3 < len(taken.series)
    assert torch.equal(small.features, taken.features)
    assert small.compact() is small
    assert torch.equal(small.series, taken.series[taken.series_index.unique()])


def test_join_puts_tables_one_after_the_other():
    one, two = random_samples(seed=1), random_samples(7, 3, seed=2, station="a much longer name")
    both = join_samples([one, two])
    assert torch.equal(both.features, torch.cat([one.features, two.features]))
    assert both.station.tolist() == [*one.station, *two.station]
    assert join_samples([one]) is one


def test_what_is_left_out_is_unknown():
    samples = make_samples(torch.zeros(2, 15), torch.zeros(1, 3, 46), torch.tensor([0, 0]))
    assert torch.isnan(samples.label).all()
    assert samples.weight.tolist() == [1, 1]
    assert np.isnat(samples.time).all()
    assert samples.station.tolist() == ["", ""]


def test_tables_that_do_not_fit():
    with pytest.raises(NoDataError, match="no table"):
        join_samples([])
    with pytest.raises(LayoutError, match=r"\(14, 3, 46\), \(15, 3, 46\)"):
        join_samples([random_samples(), random_samples(columns=14)])
    with pytest.raises(LayoutError, match="other lengths of label"):
        make_samples(
            torch.zeros(2, 15), torch.zeros(1, 3, 46), torch.tensor([0, 0]), label=torch.zeros(3)
        )


@pytest.mark.parametrize("name", ["time", "longitude", "lag", "station", "label", "weight"])
def test_a_fact_is_one_value_or_one_per_row(name):
    parts = (torch.zeros(4, 15), torch.zeros(1, 3, 46), torch.zeros(4))
    values = ["2021-03-02"] * 2 if name == "time" else [1, 2]
    with pytest.raises(LayoutError, match=rf"{name} has the shape \(2,\), .* each of 4 rows"):
        make_samples(*parts, **{name: values})


@pytest.mark.parametrize("as_", [list, np.array, torch.tensor])
def test_labels_and_weights_may_be_arrays_or_lists(as_):
    parts = (torch.zeros(2, 15), torch.zeros(1, 3, 46), torch.zeros(2))
    samples = make_samples(*parts, label=as_([0.1, 0.2]), weight=as_([1.0, 3.0]))
    assert samples.label.dtype == samples.weight.dtype == torch.float32
    np.testing.assert_allclose(samples.label, [0.1, 0.2])
    assert samples.weight.tolist() == [1, 3]


def test_one_value_may_stand_for_all_rows():
    parts = (torch.zeros(2, 15), torch.zeros(1, 3, 46), torch.zeros(2))
    samples = make_samples(*parts, label=0.25, weight=torch.tensor(2.0))
    assert samples.label.tolist() == [0.25, 0.25]
    assert samples.weight.tolist() == [2, 2]


@pytest.mark.parametrize("index", [[0, 1], [-1, 0]])
def test_an_index_points_to_a_series(index):
    with pytest.raises(LayoutError, match=r"series_index runs from .* expected rows .* 0 to 0"):
        make_samples(torch.zeros(2, 15), torch.zeros(1, 3, 46), torch.tensor(index))
