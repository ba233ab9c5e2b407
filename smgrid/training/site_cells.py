"""The draw of random pixels in the cells of a grid, one block of whole cells at a time.

What a cell yields depends on its pixels, its number and the seed alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from smgrid.errors import SchemaError
from smgrid.sources.landcover_legends import LEGENDS

Draw = Literal["classes", "cell"]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

# Pixels along the edge of what one task reads: 4 MB of codes.
_EDGE = 2048
SNAP = 1e-6  #: fraction of a cell or pixel that is floating-point noise
# Increment and multipliers of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195).
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Codes:
    """Codes of a land-cover map."""

    wanted: tuple[int, ...]  #: that a cell is kept for
    preferred: tuple[int, ...]  #: to place points on where there are any
    known: tuple[int, ...]  #: of the legend; empty where there is none
    missing: tuple[float, ...]  #: of pixels without a class
    product: str  #: whose codes outside of the legend are errors; "" where they are missing


@dataclass(frozen=True)
class Rule:
    """What decides on a cell and on the points in it."""

    codes: Codes
    draw: Draw
    least_share: float
    least_valid: float
    per_cell: int
    seed: int


@dataclass(frozen=True)
class Axis:
    """Cells along one axis of a raster; every one has a pixel."""

    first: int  #: number of the first cell
    starts: IntArray  #: (n + 1,) first pixel of each cell, and where the last ends
    whole: IntArray  #: (n,) pixels along a cell, were the raster endless

    def part(self, cells: slice) -> "Axis":
        """Return some of the cells, their pixels counted from the first."""
        starts = self.starts[cells.start : cells.stop + 1]
        return Axis(self.first + cells.start, starts - starts[0], self.whole[cells])

    def blocks(self) -> list[slice]:
        """Return runs of cells that one task reads."""
        step, n = max(1, _EDGE // int(self.whole.max())), len(self.whole)
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@dataclass(frozen=True)
class Found:
    """Points in the cells that were kept."""

    place: IntArray  #: (5, n) row and column of the cell, y and x of the pixel, number in the cell
    code: IntArray  #: (n,) class under the point
    share: FloatArray  #: (n,) of the wanted classes in the cell
    best: float  #: largest share of all cells with enough pixels; -1 where there is none


def find_points(
    codes: npt.NDArray[np.generic],
    rows: Axis,
    columns: Axis,
    origin: tuple[int, int],
    rule: Rule,
) -> Found:
    """Return the points of a block, one row of cells after the other to bound the memory."""
    parts = [
        _of_row(codes[start:stop], rows.first + at, start, int(rows.whole[at]), columns, rule)
        for at, (start, stop) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True))
    ]
    place = np.concatenate([part.place for part in parts], axis=1)
    place[2] += origin[0]
    place[3] += origin[1]
    return Found(
        place,
        np.concatenate([part.code for part in parts]),
        np.concatenate([part.share for part in parts]),
        max(part.best for part in parts),
    )


def _of_row(
    codes: npt.NDArray[np.generic],
    row: int,
    top: int,
    height: int,
    columns: Axis,
    rule: Rule,
) -> Found:
    """Return the points of one row of cells, whose first pixels are in row `top` of the block."""
    valid, wanted = _is_valid(codes, rule), np.isin(codes, rule.codes.wanted)
    wanted &= valid
    counts = _count(valid, columns)
    share = _count(wanted, columns) / np.maximum(counts, 1)
    enough = (counts > 0) & (counts >= rule.least_valid * height * columns.whole - SNAP)
    kept = np.flatnonzero(enough & (share > rule.least_share))
    drawn = _drawn_from(codes, valid if rule.draw == "cell" else wanted, valid, columns, rule)
    uniform = _uniform(rule.seed, row, columns.first + kept, rule.per_cell)
    rank = _distinct(uniform, _count(drawn, columns)[kept])
    at, number = np.nonzero(rank >= 0)
    y, x = _locate(drawn, rank[at, number], columns.starts[kept[at]])
    cell = kept[at]
    place = np.stack([np.full(at.size, row), columns.first + cell, top + y, x, number])
    best = float(share[enough].max(initial=-1.0))
    return Found(place, codes[y, x].astype(np.int64), share[cell], best)


def _is_valid(codes: npt.NDArray[np.generic], rule: Rule) -> BoolArray:
    valid = ~(np.isnan(codes) | np.isin(codes, rule.codes.missing))
    if not rule.codes.known:
        return np.asarray(valid, bool)
    known = np.isin(codes, rule.codes.known)
    if rule.codes.product and (valid & ~known).any():
        product = rule.codes.product
        raise SchemaError(
            f"land cover: found the code {codes[valid & ~known][0]}, which is no class of "
            f"{product} ({LEGENDS[product].citation}); correct product or nodata"
        )
    return np.asarray(valid & known, bool)


def _drawn_from(
    codes: npt.NDArray[np.generic],
    pixels: BoolArray,
    valid: BoolArray,
    columns: Axis,
    rule: Rule,
) -> BoolArray:
    """Return the pixels that points may lie on: those preferred in cells that have some."""
    if not rule.codes.preferred:
        return pixels
    preferred = np.isin(codes, rule.codes.preferred) & valid
    has_some = np.repeat(_count(preferred, columns) > 0, np.diff(columns.starts))
    return np.asarray(np.where(has_some, preferred, pixels), bool)


def _count(mask: BoolArray, columns: Axis) -> IntArray:
    """Count the true pixels of each cell of a row."""
    before = np.concatenate([[0], np.cumsum(mask.sum(axis=0))])
    return np.diff(before[columns.starts])


def _locate(mask: BoolArray, rank: IntArray, first: IntArray) -> tuple[IntArray, IntArray]:
    """Return row and column of the true pixels of these ranks, counted from column `first` on."""
    per_column = mask.sum(axis=0)
    until = np.cumsum(per_column)
    before = until - per_column
    wanted = rank + before[first]
    column = np.searchsorted(until, wanted, side="right")
    above = np.cumsum(mask[:, column], axis=0)
    return np.argmax(above > wanted - before[column], axis=0), column


def _distinct(uniform: FloatArray, count: IntArray) -> IntArray:
    """Return different ranks below `count` (cell, n), -1 where there are fewer.

    Floyd's algorithm: every set of them is equally likely (Bentley and Floyd 1987, Communications
    of the ACM 30:754, doi:10.1145/30401.315746).
    """
    ranks = np.full(uniform.shape, -1, np.int64)
    size = np.minimum(count, uniform.shape[1])
    for number in range(uniform.shape[1]):
        last = count - size + number
        drawn = np.floor(uniform[:, number] * (last + 1)).astype(np.int64)
        is_taken = (ranks == drawn[:, None]).any(axis=1)
        ranks[:, number] = np.where(number < size, np.where(is_taken, last, drawn), -1)
    return ranks


def _uniform(seed: int, row: int, column: IntArray, draws: int) -> FloatArray:
    """Return numbers in [0, 1) (cell, draw) that are a hash of the seed and the cell."""
    key = np.zeros(1, np.uint64)
    for part in (np.array([seed]), np.array([row]), column[:, None], np.arange(draws)):
        key = _mix(key ^ part.astype(np.int64).astype(np.uint64))
    return np.asarray((key >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output of SplitMix64 in the state `key`."""
    key = key + np.uint64(_GOLDEN)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(_FIRST)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(_SECOND)
    return key ^ (key >> np.uint64(31))
