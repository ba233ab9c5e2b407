"""Agreement of an estimate with a reference, as the field defines it.

Definitions follow Entekhabi et al. (2010, doi:10.1175/2010JHM1223.1) and the good practices of
Gruber et al. (2020, doi:10.1016/j.rse.2020.111806). Sums run over pairs in which both values are
present; everything is reduced lazily, chunk by chunk.
"""

from dataclasses import dataclass

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr

from smgrid.errors import NoDataError

# The physical range that DenseSM's authors count as valid, m3 m-3.
VALID_RANGE = (0.0, 0.6)


@dataclass(frozen=True)
class Scores:
    """Agreement of an estimate with a reference.

    Attributes
    ----------
    n
        Pairs.
    bias
        mean(estimate) - mean(reference), m3 m-3.
    rmse
        Root mean squared difference, m3 m-3.
    ubrmse
        Root mean squared difference without the bias, m3 m-3 (population form).
    r
        Pearson correlation; NaN if either is constant.
    valid_share
        Share of estimates in 0-0.6 m3 m-3.
    """

    n: int
    bias: float
    rmse: float
    ubrmse: float
    r: float
    valid_share: float


def score(estimate: xr.DataArray, reference: xr.DataArray) -> Scores:
    """Pool all pairs of an estimate and a reference on the same coordinates.

    Parameters
    ----------
    estimate, reference
        Soil moisture in m3 m-3, any dims that broadcast; NaN is missing. Coordinates must match
        exactly: collocate first.

    Raises
    ------
    NoDataError
        No pair.
    """
    estimate, reference = xr.align(estimate, reference, join="exact", copy=False)
    x, y = xr.broadcast(estimate.astype("float64"), reference.astype("float64"))
    pair = x.notnull() & y.notnull()
    low, high = VALID_RANGE
    n, mean_x, mean_y, valid = dask.compute(
        pair.sum(),
        x.where(pair).mean(),
        y.where(pair).mean(),
        ((x >= low) & (x <= high)).where(pair).mean(),
    )
    if not int(n):
        raise NoDataError("the estimate and the reference have no pair of values in common")
    # Centred second moments: raw ones lose digits when the spread is small beside the mean.
    dx, dy = (x - mean_x).where(pair), (y - mean_y).where(pair)
    xx, yy, xy = (float(v) for v in dask.compute((dx**2).mean(), (dy**2).mean(), (dx * dy).mean()))
    return _from_moments(int(n), float(mean_x - mean_y), (xx, yy, xy), float(valid))


def score_arrays(estimate: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Scores:
    """Score plain arrays of one shape as `score` does; NaN is missing.

    Raises
    ------
    NoDataError
        No pair.
    """
    pair = np.isfinite(estimate) & np.isfinite(reference)
    x, y = estimate[pair].astype(np.float64), reference[pair].astype(np.float64)
    if not x.size:
        raise NoDataError("the estimate and the reference have no pair of values in common")
    low, high = VALID_RANGE
    dx, dy = x - x.mean(), y - y.mean()
    moments = (float((dx * dx).mean()), float((dy * dy).mean()), float((dx * dy).mean()))
    valid = float(((x >= low) & (x <= high)).mean())
    return _from_moments(x.size, float(x.mean() - y.mean()), moments, valid)


def _from_moments(
    n: int, bias: float, moments: tuple[float, float, float], valid_share: float
) -> Scores:
    """Return scores from the bias and the variances and covariance of both."""
    xx, yy, xy = moments
    variance = max(xx + yy - 2 * xy, 0.0)
    return Scores(
        n=n,
        bias=bias,
        rmse=float(np.sqrt(variance + bias**2)),
        ubrmse=float(np.sqrt(variance)),
        r=float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else float("nan"),
        valid_share=valid_share,
    )


def coverage(
    estimate: xr.DataArray, spread: xr.DataArray, reference: xr.DataArray, *, factor: float = 1.0
) -> float:
    """Share of reference values within ``factor`` spreads of the estimate.

    A calibrated Gaussian spread covers 0.68 at factor 1 and 0.95 at factor 2.
    """
    error = abs(estimate - reference)
    pair = error.notnull() & spread.notnull()
    inside = (error <= factor * spread).where(pair)
    return float(inside.mean())
