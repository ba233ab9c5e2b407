import numpy as np
import pytest
import xarray as xr

from smgrid.errors import NoDataError
from smgrid.metrics import coverage, score, score_arrays


def line(values):
    return xr.DataArray(np.asarray(values), dims="time")


@pytest.mark.shared
@pytest.mark.parametrize("chunks", [None, 37])
def test_scores_equal_those_of_pytesmo(shared, chunks):
    golden = np.load(shared / "reference/golden/validation_golden.npz")
    x, y = line(golden["x"]), line(golden["y"])
    if chunks:
        x, y = x.chunk(time=chunks), y.chunk(time=chunks)
    s = score(x, y)
    assert s.bias == pytest.approx(float(golden["bias_xy"]), rel=1e-9)
    assert s.rmse == pytest.approx(float(golden["rmsd_xy"]), rel=1e-9)
    assert s.ubrmse == pytest.approx(float(golden["ubrmsd_xy"]), rel=1e-9)
    assert s.r == pytest.approx(float(golden["pearson_xy"]), rel=1e-9)


def test_only_pairs_count():
    s = score(line([0.1, np.nan, 0.3, 0.7]), line([0.2, 0.5, np.nan, 0.5]))
    assert s.n == 2
    assert s.bias == pytest.approx(0.05)
    assert s.valid_share == 0.5


def test_a_constant_has_no_correlation():
    assert np.isnan(score(line([0.2, 0.2]), line([0.1, 0.3])).r)


def test_no_pair_is_an_error():
    with pytest.raises(NoDataError, match="no pair"):
        score(line([np.nan, 1.0]), line([1.0, np.nan]))


def test_coordinates_that_differ_are_refused():
    one = line([0.1, 0.2]).assign_coords(time=[0, 1])
    with pytest.raises(ValueError, match=r"cannot align|exact"):
        score(one, one.assign_coords(time=[1, 2]))


def test_coverage_counts_reference_values_within_the_spread():
    estimate, spread = line([0.2, 0.2, 0.2, np.nan]), line([0.05, 0.05, 0.05, 0.05])
    truth = line([0.24, 0.16, 0.29, 0.2])
    assert coverage(estimate, spread, truth) == pytest.approx(2 / 3)
    assert coverage(estimate, spread, truth, factor=2) == 1


def test_plain_arrays_score_alike():
    rng = np.random.default_rng(4)
    x, y = rng.random((2, 50, 3))
    x[3, 1] = y[7, 2] = np.nan
    lazy = score(xr.DataArray(x).chunk(), xr.DataArray(y).chunk())
    plain = score_arrays(x, y)
    assert plain.n == lazy.n == 148
    for name in ("bias", "rmse", "ubrmse", "r", "valid_share"):
        assert getattr(plain, name) == pytest.approx(getattr(lazy, name), rel=1e-12)
    with pytest.raises(NoDataError, match="no pair"):
        score_arrays(x * np.nan, y)
