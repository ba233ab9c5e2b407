"""The series branch as one compiled loop: convolutions, ReLU and pooling fused, sixteen at a time.

numba compiles it where it is installed (`smgrid[numba]`), once per machine; the engine does the
same with matrix products where it is not. Sixteen series lie beside each other innermost, so that
every operation is two AVX vectors wide; with eight the compiler gives up on vectors.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_LANES = 16


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function, and keep the code on disk where there is a place for it."""
    # Products may be added in one rounding, as BLAS does; nothing else is taken lightly.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        compiled = numba.njit(**options)(function)
    return compiled


@_compiled
def branch_sums(
    series: FloatArray,
    weight1: FloatArray,
    bias1: FloatArray,
    weight2: FloatArray,
    bias2: FloatArray,
    weight3: FloatArray,
    bias3: FloatArray,
    sums: FloatArray,
) -> None:
    """Fill ``sums`` with what the branches of all members make of series.

    Parameters
    ----------
    series
        (m, series, steps) scaled, finite.
    weight1, weight2, weight3
        (members, inputs, outputs, 5) of the folded convolutions; outputs of the first two are even.
    bias1, bias2, bias3
        (members, outputs).
    sums
        (members, channels * windows, m): over the windows of the last pooling.
    """
    m, n_series, steps = series.shape
    half, quarter = steps // 2, steps // 2 // 2
    x = np.zeros((steps + 4, n_series, _LANES), np.float32)
    y = np.zeros((half + 4, weight1.shape[2], _LANES), np.float32)
    z = np.zeros((quarter + 4, weight2.shape[2], _LANES), np.float32)
    found = np.zeros((sums.shape[1], _LANES), np.float32)
    for start in range(0, m, _LANES):
        n = min(_LANES, m - start)
        for lane in range(n):
            for c in range(n_series):
                for t in range(steps):
                    x[t + 2, c, lane] = series[start + lane, c, t]
        _replicate_edges(x)
        for member in range(len(sums)):
            _convolve_and_pool(x, weight1[member], bias1[member], y)
            _replicate_edges(y)
            _convolve_and_pool(y, weight2[member], bias2[member], z)
            _replicate_edges(z)
            _convolve_and_sum(z, weight3[member], bias3[member], found)
            for k in range(len(found)):
                for lane in range(n):
                    sums[member, k, start + lane] = found[k, lane]


@_compiled
def _replicate_edges(y: FloatArray) -> None:
    """Fill the two steps before the first and after the last."""
    last = len(y) - 3
    for c in range(y.shape[1]):
        for lane in range(_LANES):
            y[0, c, lane] = y[1, c, lane] = y[2, c, lane]
            y[last + 1, c, lane] = y[last + 2, c, lane] = y[last, c, lane]


@_compiled
def _convolve_and_pool(x: FloatArray, weight: FloatArray, bias: FloatArray, y: FloatArray) -> None:
    """Sum pairs of steps of the rectified convolution of ``x`` into the inner steps of ``y``.

    Two outputs and two steps at a time: each loaded value then serves in up to four products.
    """
    zero = np.float32(0)
    sums = np.empty((4, _LANES), np.float32)
    for pair in range(len(y) - 4):
        t = 2 * pair
        for o in range(0, len(bias), 2):
            for lane in range(_LANES):
                sums[0, lane] = sums[1, lane] = bias[o]
                sums[2, lane] = sums[3, lane] = bias[o + 1]
            for c in range(len(weight)):
                a0, a1, a2, a3, a4 = weight[c, o]
                b0, b1, b2, b3, b4 = weight[c, o + 1]
                for lane in range(_LANES):
                    x0, x1, x2 = x[t, c, lane], x[t + 1, c, lane], x[t + 2, c, lane]
                    x3, x4, x5 = x[t + 3, c, lane], x[t + 4, c, lane], x[t + 5, c, lane]
                    sums[0, lane] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3 + a4 * x4
                    sums[1, lane] += a0 * x1 + a1 * x2 + a2 * x3 + a3 * x4 + a4 * x5
                    sums[2, lane] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3 + b4 * x4
                    sums[3, lane] += b0 * x1 + b1 * x2 + b2 * x3 + b3 * x4 + b4 * x5
            for lane in range(_LANES):
                y[pair + 2, o, lane] = max(sums[0, lane], zero) + max(sums[1, lane], zero)
                y[pair + 2, o + 1, lane] = max(sums[2, lane], zero) + max(sums[3, lane], zero)


@_compiled
def _convolve_and_sum(
    x: FloatArray, weight: FloatArray, bias: FloatArray, found: FloatArray
) -> None:
    """Sum the rectified convolution of ``x`` over windows of four steps, the last one shorter."""
    zero = np.float32(0)
    steps = len(x) - 4
    windows = (steps + 3) // 4
    step = np.empty(_LANES, np.float32)
    for o in range(len(bias)):
        for window in range(windows):
            row = found[o * windows + window]
            row[:] = zero
            for t in range(4 * window, min(4 * window + 4, steps)):
                step[:] = bias[o]
                for c in range(len(weight)):
                    a0, a1, a2, a3, a4 = weight[c, o]
                    for lane in range(_LANES):
                        step[lane] += (
                            a0 * x[t, c, lane]
                            + a1 * x[t + 1, c, lane]
                            + a2 * x[t + 2, c, lane]
                            + a3 * x[t + 3, c, lane]
                            + a4 * x[t + 4, c, lane]
                        )
                for lane in range(_LANES):
                    row[lane] += max(step[lane], zero)
