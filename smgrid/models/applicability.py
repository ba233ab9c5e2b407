"""How far a pixel lies from what an ensemble was trained on.

The dissimilarity index and its threshold follow Meyer and Pebesma 2021 (Methods Ecol. Evol.
12:1620): the distance to the nearest training sample, in features weighted by their importance,
divided by the mean distance between training samples. It is measured to a coreset, whose covering
radius says how much that may cost. `smgrid.training.uncertainty` makes the summary.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smgrid.errors import BundleError, LayoutError
from smgrid.models.devices import one_thread

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

RECENT = 4
"""Newest steps of a series whose mean is a feature beside that of the whole."""

MARGIN = 0.1
"""Index by which one feature has to exceed the training range to be outside."""

# Rows whose distances to the coreset stay in cache.
_ROWS = 512


@dataclass(frozen=True, eq=False)
class Applicability:
    """A summary of training samples that pixels are held against.

    Features are the snapshot columns, the mean of each series, and the mean of its newest steps
    (see `feature_vectors`), scaled and clipped by the layout.

    Attributes
    ----------
    low, high
        (features,) range of the training samples.
    weight
        (features,) importance: mean absolute change of the ensemble's mean per unit, m3 m-3.
        The distance between two feature vectors is the length of their weighted difference.
    coreset
        (points, features) weighted vectors of training samples, minus ``centre``.
    centre
        (features,) mean of the weighted vectors, so that rounding errors stay small.
    mean_distance
        Between training samples, m3 m-3; the index is in units of it.
    threshold
        Index above which a pixel is outside the area of applicability: the upper whisker (75th
        percentile plus 1.5 times the interquartile range, at most the largest) of the index of
        training samples against those of other stations or places.
    radius
        Covering radius of the coreset: no index is more than this too large.
    rows, groups
        Training samples that were summarised, and stations or places that they are of.
    """

    low: FloatArray
    high: FloatArray
    weight: FloatArray
    coreset: FloatArray
    centre: FloatArray
    mean_distance: float
    threshold: float
    radius: float
    rows: int
    groups: int

    def __post_init__(self) -> None:
        n = len(self.low)
        shapes = {name: getattr(self, name).shape for name in _VECTORS}
        arrays = [self.coreset, *(getattr(self, name) for name in _VECTORS)]
        whole = all(np.isfinite(array).all() for array in arrays)
        fits = set(shapes.values()) == {(n,)} and self.coreset.shape == (len(self.coreset), n)
        positive = self.mean_distance > 0 and self.threshold >= 0 and self.radius >= 0
        if not (n and len(self.coreset) and whole and fits and positive):
            raise BundleError(
                "a training summary needs finite vectors of one length, a coreset of as many "
                f"columns and a positive mean distance; found {shapes}, a coreset of "
                f"{self.coreset.shape} and a mean distance of {self.mean_distance}"
            )

    def dissimilarity(
        self, snapshot: FloatArray, series: FloatArray, series_index: IntArray
    ) -> FloatArray:
        """Return how unlike the training samples rows are.

        Parameters
        ----------
        snapshot
            (n, snapshot columns), scaled, in the layout's order.
        series
            (m, series, steps) distinct scaled series.
        series_index
            (n,) row of ``series`` that each row uses.

        Returns
        -------
        array
            (n,) index: 0 on a training sample, 1 as far away as they are from each other on the
            average; NaN for a row of which any value is.

        Raises
        ------
        LayoutError
            The rows have other features than the summary.
        """
        rows = self._vectors(snapshot, series, series_index)
        rows *= self.weight
        rows -= self.centre
        with one_thread():
            distance = _nearest(torch.from_numpy(rows), self._factors)
        distance /= np.float32(self.mean_distance)
        return distance

    def outside_range(
        self, snapshot: FloatArray, series: FloatArray, series_index: IntArray
    ) -> BoolArray:
        """Return which rows have a feature outside the range of the training samples.

        Outside by so much that it matters: each new place lies a little outside in some of twenty
        features, so what counts is an excess that adds `MARGIN` to the index by itself.

        Parameters as for `dissimilarity`. A missing value is not outside. Values beyond the range
        of the layout count as its ends, here and in training; `BlockFeatures.clipped` tells them.
        """
        rows = self._vectors(snapshot, series, series_index)
        low, high = self._limits
        return np.asarray(((rows < low) | (rows > high)).any(axis=1))

    def _vectors(
        self, snapshot: FloatArray, series: FloatArray, series_index: IntArray
    ) -> FloatArray:
        rows = feature_vectors(snapshot, series, series_index)
        if rows.shape[1] != len(self.low):
            raise LayoutError(
                f"the rows make {rows.shape[1]} features, the training summary has "
                f"{len(self.low)}; give snapshot columns and series of the ensemble's layout"
            )
        return rows

    @cached_property
    def _limits(self) -> tuple[FloatArray, FloatArray]:
        with np.errstate(divide="ignore"):  # what has no weight may be anything
            margin = np.float32(MARGIN * self.mean_distance) / self.weight
        return self.low - margin, self.high + margin

    @cached_property
    def _factors(self) -> Tensor:
        """(points, features + 1): what a row [-2 x, 1] is multiplied by for |c|^2 - 2 c x."""
        core = torch.from_numpy(self.coreset)
        return torch.cat([core, core.square().sum(dim=1, keepdim=True)], dim=1)

    @property
    def digest(self) -> str:
        """sha256 of all fields."""
        digest = hashlib.sha256()
        for name, array in self.to_arrays().items():
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all fields as arrays by name; numbers have one element."""
        return {f.name: np.atleast_1d(np.asarray(getattr(self, f.name))) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Applicability":
        """Read what `to_arrays` wrote.

        Raises
        ------
        BundleError
            A field is missing or unknown, or the fields do not fit together.
        """
        names = {f.name for f in fields(cls)}
        numbers = names - {*_VECTORS, "coreset"}
        if set(arrays) != names or any(arrays[name].shape != (1,) for name in numbers):
            raise BundleError(
                f"a training summary needs {', '.join(sorted(names))}, found "
                f"{', '.join(sorted(arrays)) or 'nothing'}"
            )
        found: dict[str, Any] = {n: v.item() if n in numbers else v for n, v in arrays.items()}
        return cls(**found)


_VECTORS = ("low", "high", "weight", "centre")


def feature_vectors(snapshot: FloatArray, series: FloatArray, series_index: IntArray) -> FloatArray:
    """(n, snapshot columns + 2 * series): what the index sees of a row.

    The snapshot columns, the mean of each series, and the mean of its `RECENT` newest steps.
    """
    # Once per distinct series, of which many rows share one.
    means = np.concatenate([series.mean(axis=2), series[:, :, -RECENT:].mean(axis=2)], axis=1)
    columns = snapshot.shape[1]
    rows = np.empty((len(snapshot), columns + means.shape[1]), np.float32)
    rows[:, :columns], rows[:, columns:] = snapshot, means[series_index]
    return rows


def _nearest(rows: Tensor, factors: Tensor) -> FloatArray:
    """Distance of each row to the nearest point.

    As a product of matrices: in twenty dimensions a kd-tree looks at most points anyway, one by
    one, and takes twenty times as long for a thousand of them.
    """
    found = torch.empty(len(rows))
    extended = torch.cat([-2 * rows, torch.ones(len(rows), 1)], dim=1)
    buffer = torch.empty(len(factors), min(len(rows), _ROWS))
    for start in range(0, len(rows), _ROWS):
        part = extended[start : start + _ROWS]
        products = torch.mm(factors, part.t(), out=buffer[:, : len(part)])
        torch.amin(products, dim=0, out=found[start : start + len(part)])
    found += rows.square().sum(dim=1)
    return found.clamp_(min=0).sqrt_().numpy()
