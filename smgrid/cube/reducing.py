"""Coarser versions of an array, each an exact reduction of the finest, in one pass over its chunks.

Means are carried from level to level as a sum and a count, so that every level is the mean of the
valid pixels of the map itself and not of the level before, whose pixels weigh differently. Masks
are treated bit by bit in the same way. Only classes, whose counts have no fixed size, take the
most frequent of four classes of the level before.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

Method = Literal["mean", "majority", "mode"]
Values = npt.NDArray[Any]
Bits = tuple[int, ...]

_MASKS = "flag_masks"


def method_of(array: xr.DataArray) -> Method:
    """Return how a variable is reduced: quantities, bit masks and classes differ."""
    if array.dtype.kind == "f":
        return "mean"
    return "majority" if _MASKS in array.attrs else "mode"


def reduce_levels(array: xr.DataArray, levels: int, *, tile: int) -> list[da.Array]:
    """Return an array at factors 2, 4, 8, ..., `levels` of them.

    Parameters
    ----------
    array
        Dims (..., y, x); floats with NaN for missing values, or integers.
    levels
        How many.
    tile
        Edge of the chunks of the result in pixels of each level.

    Returns
    -------
    list of da.Array
        Lazy, of the same type. An odd last row or column stands alone. Floats are the mean of the
        valid pixels of `array`, NaN where there is none. A bit of a mask (a variable with
        ``flag_masks``) is set where it is set in more than half of the pixels of `array`: each
        flag is a class by itself and this is its mode, whereas the most frequent combination of
        all bits may lack a flag that holds almost everywhere, and a bitwise OR flags nearly every
        pixel of a coarse level. Other integers are the mode of four pixels of the level before,
        the smallest of several.
    """
    source: da.Array = (array if array.chunks is not None else array.chunk()).data
    method = method_of(array)
    if method == "mode":
        return _steps(_halve(source, _mode_of_four, tile), _mode_of_four, levels, tile)
    bits = _bits_of(array) if method == "majority" else ()
    first = functools.partial(_first_sums, bits=bits)
    sums = _halve(source, first, tile, planes=len(bits) + 1 if bits else 2)
    finish = functools.partial(_evaluate, bits=bits, dtype=source.dtype)
    return [
        da.map_blocks(finish, level, drop_axis=0, dtype=source.dtype, meta=_meta(source))
        for level in _steps(sums, _sum_of_four, levels, tile)
    ]


def _bits_of(array: xr.DataArray) -> Bits:
    used = functools.reduce(operator.or_, (int(mask) for mask in array.attrs[_MASKS]), 0)
    return tuple(1 << place for place in range(used.bit_length()) if used >> place & 1)


def _steps(
    first: da.Array, function: Callable[[Values], Values], levels: int, tile: int
) -> list[da.Array]:
    found = [first]
    while len(found) < levels:
        found.append(_halve(found[-1], function, tile))
    return found


def _halve(
    source: da.Array, function: Callable[[Values], Values], tile: int, *, planes: int = 0
) -> da.Array:
    """Apply a function that makes one of every two by two pixels to chunks of `tile` such."""
    source = source.rechunk({source.ndim - 2: 2 * tile, source.ndim - 1: 2 * tile})
    halved = [tuple(-(-size // 2) for size in sizes) for sizes in source.chunks[-2:]]
    chunks = (*source.chunks[:-2], *halved)
    how: dict[str, Any] = {"chunks": chunks, "dtype": source.dtype}
    if planes:
        dtype = np.float64 if source.dtype.kind == "f" else np.uint32
        how = {"chunks": ((planes,), *chunks), "dtype": dtype, "new_axis": 0}
    halves: da.Array = da.map_blocks(function, source, meta=np.empty(0, how["dtype"]), **how)
    return halves


def _meta(array: da.Array) -> Values:
    return np.empty(0, array.dtype)


def _first_sums(block: Values, *, bits: Bits) -> Values:
    """Return sums over two by two pixels: of the values or of each bit, and of what counts."""
    if bits:
        planes = [(block & bit) != 0 for bit in bits] + [np.ones(block.shape, bool)]
        return np.stack([_sum_of_four(plane.astype(np.uint32)) for plane in planes])
    valid = ~np.isnan(block)
    values = np.where(valid, block, 0).astype(np.float64)
    return np.stack([_sum_of_four(values), _sum_of_four(valid.astype(np.float64))])


def _sum_of_four(block: Values) -> Values:
    a, b, c, d = _quarters(block, "constant")
    total: Values = a + b + c + d
    return total


def _mode_of_four(block: Values) -> Values:
    four = np.sort(np.stack(_quarters(block, "edge")), axis=0)
    counts = (four[:, None] == four[None]).sum(axis=1)
    most: Values = np.take_along_axis(four, counts.argmax(axis=0)[None], axis=0)[0]
    return most


def _quarters(block: Values, padding: Literal["constant", "edge"]) -> list[Values]:
    odd = [(0, size % 2) for size in block.shape[-2:]]
    padded = np.pad(block, [(0, 0)] * (block.ndim - 2) + odd, mode=padding)
    return [padded[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]


def _evaluate(sums: Values, *, bits: Bits, dtype: np.dtype[Any]) -> Values:
    *planes, count = sums
    if bits:
        parts = [
            np.where(2 * plane > count, bit, 0) for bit, plane in zip(bits, planes, strict=True)
        ]
        mask: Values = np.bitwise_or.reduce(parts).astype(dtype)
        return mask
    mean = np.full(count.shape, np.nan)
    np.divide(planes[0], count, out=mean, where=count > 0)
    return mean.astype(dtype)
