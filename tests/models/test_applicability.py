import pickle

import numpy as np
import pytest
from scipy.spatial import cKDTree

from smgrid.errors import BundleError, LayoutError
from smgrid.models.applicability import Applicability, feature_vectors
from tests.models.uncertainties import make_applicability, make_rows


def test_features_are_snapshot_mean_of_series_and_mean_of_newest_steps():
    snapshot, series, index = make_rows(7, 3)
    found = feature_vectors(snapshot, series, index)
    assert found.shape == (7, 21)
    assert found.dtype == np.float32
    for row, sample, run in zip(found, snapshot, series[index], strict=True):
        np.testing.assert_array_equal(row[:15], sample)
        np.testing.assert_allclose(row[15:18], run.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(row[18:], run[:, 42:].mean(axis=1), rtol=1e-6)


def test_the_index_is_the_distance_that_a_tree_finds():
    summary, rows = make_applicability(), make_rows(1500, 40, seed=1)
    weighted = feature_vectors(*rows).astype(float) * summary.weight - summary.centre
    expected = cKDTree(summary.coreset).query(weighted)[0] / summary.mean_distance
    found = summary.dissimilarity(*rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert found.min() > 0.05


def test_the_index_of_training_rows_is_zero_and_no_feature_is_outside():
    rows = make_rows()
    summary = make_applicability(rows)
    # The square root of what single precision leaves of 0.
    np.testing.assert_allclose(summary.dissimilarity(*rows), 0, atol=2e-3)
    assert not summary.outside_range(*rows).any()


def test_a_row_with_a_missing_value_has_no_index():
    summary, (snapshot, series, index) = make_applicability(), make_rows(6, 3, seed=1)
    index[:] = [0, 1, 2, 0, 1, 2]
    snapshot[0, 4], series[1, 2, 9] = np.nan, np.nan
    found = summary.dissimilarity(snapshot, series, index)
    np.testing.assert_array_equal(np.isnan(found), [True, True, False, False, True, False])


def test_a_feature_is_outside_where_the_excess_adds_to_the_index():
    """Its margin is a tenth of the mean distance, over its weight."""
    rows = make_rows()
    summary = make_applicability(rows, mean_distance=1.5)
    snapshot, series, index = (array.copy() for array in rows)
    margin = 0.15 / summary.weight[7]
    snapshot[0, 7] = summary.high[7] + 0.9 * margin
    snapshot[1, 7] = summary.high[7] + 1.1 * margin
    snapshot[2, 7] = summary.low[7] - 1.1 * margin
    snapshot[3, 0] = 1e6  # a feature without weight
    snapshot[4, 7] = np.nan
    outside = summary.outside_range(snapshot, series, index)
    np.testing.assert_array_equal(np.flatnonzero(outside), [1, 2])


def test_newest_steps_alone_can_be_outside():
    rows = make_rows()
    summary = make_applicability(rows)
    snapshot, series, _ = (array.copy() for array in rows)
    series[0, 2, -4:], series[0, 2, :4] = 1.0, 0.0
    outside = summary.outside_range(snapshot[:2], series, np.array([0, 1]))
    np.testing.assert_array_equal(outside, [True, False])


def test_no_row_and_a_layout_without_series():
    summary = make_applicability()
    snapshot, series, index = make_rows(0, 2)
    assert summary.dissimilarity(snapshot, series, index).shape == (0,)
    rows = make_rows(20, 1, series=0)
    alone = make_applicability(rows)
    np.testing.assert_allclose(alone.dissimilarity(*rows), 0, atol=2e-3)


def test_rows_of_another_layout_are_refused():
    with pytest.raises(LayoutError, match="20 features, the training summary has 21"):
        make_applicability().dissimilarity(*make_rows(5, 2, columns=14))


def test_summary_round_trips_and_survives_pickling():
    summary, rows = make_applicability(), make_rows(seed=2)
    expected = summary.dissimilarity(*rows)
    for again in (
        Applicability.from_arrays(summary.to_arrays()),
        pickle.loads(pickle.dumps(summary)),
    ):
        np.testing.assert_array_equal(again.dissimilarity(*rows), expected)
        assert (again.threshold, again.groups) == (0.5, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"low": np.zeros(3, np.float32)},
        {"weight": np.full(21, np.nan, np.float32)},
        {"coreset": np.zeros((4, 20), np.float32)},
        {"coreset": np.zeros((0, 21), np.float32)},
        {"mean_distance": 0.0},
        {"threshold": float("nan")},
    ],
)
def test_a_summary_whose_parts_do_not_fit_is_refused(change):
    with pytest.raises(BundleError, match="a training summary needs finite vectors"):
        make_applicability(**change)


def test_a_summary_that_lacks_a_part_is_refused():
    arrays = make_applicability().to_arrays()
    lacking = {name: array for name, array in arrays.items() if name != "radius"}
    for wrong in (lacking, arrays | {"radius": np.zeros(2)}, arrays | {"more": np.zeros(1)}):
        with pytest.raises(BundleError, match="a training summary needs centre, coreset"):
            Applicability.from_arrays(wrong)
